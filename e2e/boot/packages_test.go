package boot

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/lab"
)

// packageKind is what differs between package managers.
type packageKind struct {
	repository string // script: the host gets the repository at %s
	name       string // a package with a daemon
	needs      string // a package that comes with it
	unit       string // of the daemon, which the package starts at boot
	conf       string // a file of the administrator, which the package brings
	try, says  string // script that uses what the package brings, and its output
	verify     string // script: lists the files that are not as the database says
	override   bool   // the image has packages of the lab to override
}

var packageKinds = map[string]packageKind{
	"rpm": {
		repository: `mkdir -p /etc/yum.repos.d && printf '[lab]\nname=lab\nbaseurl=%s\ngpgcheck=0\n' >/etc/yum.repos.d/lab.repo`,
		name:       "lab-service",
		needs:      "lab-anchor",
		unit:       "lab-service.service",
		conf:       "/etc/lab-service.conf",
		// The service runs as a user of its own, for whom it has a directory in /var.
		try:      "lab-service && lab-anchor && cat /var/lib/lab-service/seen && stat -c %U /var/lib/lab-service/seen && systemctl is-enabled lab-spare || true",
		says:     "lab-service 1.0\nlab-anchor 1.0\ndefault = yes\nin /opt\nlabsvc\ndisabled",
		verify:   "rpm -Va",
		override: true,
	},
	"deb": {
		repository: `echo 'deb [trusted=yes] %s ./' >/etc/apt/sources.list`,
		name:       "cron",
		needs:      "cron-daemon-common",
		unit:       "cron.service",
		conf:       "/etc/default/cron",
		// crontab has the rights of a group, to which its directory belongs.
		try:    "echo '@yearly true' | crontab - && crontab -l && stat -c %G /var/spool/cron/crontabs /usr/bin/crontab",
		says:   "@yearly true\ncrontab\ncrontab",
		verify: "dpkg --verify",
	},
}

// TestPackages puts a daemon with a dependency on a booted host: it runs after the
// reboot, stays over an upgrade of the image, and leaves no trace.
func TestPackages(t *testing.T) {
	t.Parallel()
	nightlyOnly(t, "four or five boots for each package manager on each backend, half an hour")
	for manager, k := range packageKinds {
		for _, backend := range []string{"ostree", "composefs"} {
			t.Run(manager+"/"+backend, func(t *testing.T) {
				t.Parallel()
				k.story(t, manager, backend)
			})
		}
	}
}

func (k packageKind) story(t *testing.T, manager, backend string) {
	w, layout, repository := packageWorld(t, manager)
	w.buildHostImage(t, "os:host", "one")
	// In Debian the signature policy comes with podman.
	w.build(t, "os:host", "FROM "+w.Registry.Repo("os:host")+`
RUN echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
`)
	var disk *lab.Disk
	if backend == "composefs" {
		disk = w.newDisk(t, "ext4 -O verity")
		w.installSealed(t, disk, layout, "os:host")
	} else {
		disk = w.newDisk(t, "ext4")
		w.install(t, disk, "os:host")
	}
	m := w.machine(t, disk)
	g := start(t, m)
	g.checkBackend(backend)
	plain := g.host().Booted
	before := g.changedFiles(k.verify)
	g.sh(fmt.Sprintf(k.repository, repository))
	g.sh("echo local >/etc/local && echo admin >>/etc/hosts")
	g.kedge("pkg add " + k.name)
	g.want("what runs is as it was", "systemctl cat "+k.unit+" >/dev/null 2>&1 || echo as it was", "as it was")

	g = g.reboot(m)
	g.checkBackend(backend)
	g.checkPackage(k)
	g.checkDatabase(k.verify, backend, before)
	g.checkLayered(k, backend, plain)
	g.kedge("pkg remove " + k.name)
	if got := g.host().Staged; got == nil || rootOf(got) != rootOf(plain) || got.Incompatible {
		t.Errorf("without the package, %+v is staged, want the root from before it: %s", got, rootOf(plain))
	}
	g.kedge("cleanup --staged")
	g.sh("echo mine >>" + k.conf)

	w.build(t, "os:host", "FROM "+w.Registry.Repo("os:host")+"\nRUN echo two >/usr/share/marker\n")
	g.kedge("upgrade")
	g = g.reboot(m)
	g.checkBackend(backend)
	g.want("the upgrade is booted", "cat /usr/share/marker", "two")
	g.want("an edit of a file that the package brought survives", "tail -n 1 "+k.conf, "mine")
	g.want("the daemon runs still", "systemctl is-active "+k.unit, "active")
	base := g.host().Booted.Kedge.BaseImage
	if base == nil || base.ImageDigest == plain.Image.ImageDigest {
		t.Fatalf("after the upgrade the base image is %+v", base)
	}
	g.kedge("pkg remove " + k.name)
	if k.override {
		g.kedge("pkg override remove lab-editor --replace lab-tool")
		g = g.reboot(m)
		g.checkBackend(backend)
		g.want("a package of the image is replaced", "lab-tool && rpm -q lab-tool", "lab-tool 2.0\nlab-tool-2.0-1.noarch")
		g.want("another is removed", "command -v lab-editor || rpm -q lab-editor || true", "package lab-editor is not installed")
		g.kedge("pkg list")
		g.kedge("pkg override reset --all")
	}

	g = g.reboot(m)
	g.checkBackend(backend)
	g.want("the daemon is gone", "systemctl cat "+k.unit+" >/dev/null 2>&1 || ls /etc/systemd/system/multi-user.target.wants/"+k.unit+" 2>/dev/null || echo gone", "gone")
	g.want("the upgrade is not", "cat /usr/share/marker", "two")
	g.want("nor what is local", "cat /etc/local && tail -n 1 /etc/hosts", "local\nadmin")
	g.checkDatabase(k.verify, backend, before)
	if e := g.host().Booted; e.Incompatible || e.Kedge.Packages != nil || e.Image.ImageDigest != base.ImageDigest {
		t.Errorf("status of the plain image = %+v, want the image %s", e, base.ImageDigest)
	}
	if backend == "composefs" {
		g.kedge("fsck")
	}
	if err := g.Shutdown("poweroff", scriptTimeout); err != nil {
		t.Fatal(err)
	}
	if backend == "ostree" {
		checkDisk(t, w, disk)
	}
}

// packageWorld is a world whose base has a package manager, and the address of a
// repository for it as a guest finds it.
func packageWorld(t *testing.T, manager string) (w *world, layout, repository string) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines; -short")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "podman", "skopeo", "umoci", "ostree", "mkfs.ext4", "cpio", "mmdebstrap", "bwrap", "go")
	images := lab.PackageImages(t)
	layout = filepath.Join(images, manager, "oci")
	inner, err := lab.NewWorld(t.Context(), layout, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(images, manager, "repository"))))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &world{inner}, layout, "http://" + lab.HostAddress + ":" + u.Port()
}

// checkBackend looks for what must hold on every booted host.
func (g *guest) checkBackend(backend string) {
	g.t.Helper()
	if backend == "composefs" {
		g.checkSealed()
	} else {
		g.checkHealth()
	}
}

// checkPackage: what the package brings works, beside what the administrator did.
func (g *guest) checkPackage(k packageKind) {
	g.t.Helper()
	g.want("the daemon runs", "systemctl is-active "+k.unit, "active")
	g.want("it starts at boot", "systemctl is-enabled "+k.unit, "enabled")
	g.want("what the package brings works", k.try, k.says)
	g.want("what the administrator wrote is there", "cat /etc/local && tail -n 1 /etc/hosts", "local\nadmin")
	file := "/usr/lib/systemd/system/" + k.unit
	g.want("files of the package have labels", "getfattr --only-values --absolute-names -n security.selinux "+file+" | tr -d '\\0'", g.sh("matchpathcon -n "+file))
}

// checkLayered: what is said of a host with packages, and kept for it.
func (g *guest) checkLayered(k packageKind, backend string, plain *v1.BootEntry) {
	g.t.Helper()
	e := g.host().Booted
	p := e.Kedge.Packages
	if p == nil || !slices.Equal(p.Requested, []string{k.name}) || !slices.ContainsFunc(p.Layered, func(l string) bool { return strings.HasPrefix(l, k.needs+" ") }) ||
		e.Kedge.BaseImage == nil || e.Kedge.BaseImage.ImageDigest != plain.Image.ImageDigest || !e.Incompatible {
		g.t.Errorf("status of a host with packages = %+v, %+v", e.Kedge, p)
	}
	g.kedge("pkg list")
	if backend == "ostree" {
		g.want("bootc's garbage collection keeps the base", "ostree refs --repo=/ostree/repo --list ostree/container/baseimage/kedge | wc -l", "1")
	}
}

// changedFiles are the lines of a package manager about files that are not as its
// database says.
func (g *guest) changedFiles(verify string) []string {
	g.t.Helper()
	return strings.FieldsFunc(g.output(verify), func(r rune) bool { return r == '\n' })
}

// checkDatabase: files are as the database says, but for those that differ in the
// plain image.
func (g *guest) checkDatabase(verify, backend string, plain []string) {
	g.t.Helper()
	for _, line := range g.changedFiles(verify) {
		if !slices.Contains(plain, line) && !mayDiffer(backend, line) {
			g.t.Errorf("%s says: %s", verify, line)
		}
	}
}

// mayDiffer: /var is the host's, and /opt lies there; on the ostree backend files
// have no time.
func mayDiffer(backend, line string) bool {
	return strings.Contains(line, " /var/") || strings.Contains(line, " /opt/") ||
		backend == "ostree" && strings.HasPrefix(line, ".......T. ")
}

// host is what status says of the guest's deployments.
func (g *guest) host() v1.HostStatus {
	g.t.Helper()
	var h v1.Host
	if err := json.Unmarshal([]byte(g.sh("kedge status --json")), &h); err != nil || h.Status.Booted == nil {
		g.t.Fatalf("status of a booted host: %v, %+v", err, h.Status)
	}
	return h.Status
}

// rootOf is the commit or the image of a deployment's root.
func rootOf(e *v1.BootEntry) string {
	if e.Composefs != nil {
		return e.Composefs.Verity
	}
	return e.OSTree.Checksum
}
