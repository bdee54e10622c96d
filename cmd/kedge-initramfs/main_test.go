package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// asProgram is set where the test's binary is to be the program itself.
const asProgram = "KEDGE_INITRAMFS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// disk is a directory as a composefs host's disk has it, with one deployment.
type disk struct {
	t      *testing.T
	dir    string // what is mounted at /sysroot
	image  string // the EROFS image
	digest string
	config string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "unshare", "bash")
	work := t.TempDir()
	d := &disk{t: t, dir: filepath.Join(work, "sysroot"), config: filepath.Join(work, "setup-root-conf.toml")}
	body := bytes.Repeat([]byte("contents\n"), 10_000)
	tree, err := composefs.ReadDump(strings.NewReader(fmt.Sprintf(`/ 0 40755 2 0 0 0 0.0 - - -
/etc 0 40755 2 0 0 0 0.0 - - -
/etc/default 6 100644 1 0 0 0 0.0 - image\n -
/sysroot 0 40755 2 0 0 0 0.0 - - -
/usr 0 40755 2 0 0 0 0.0 - - -
/usr/file %d 100644 1 0 0 0 0.0 %s - %s
/var 0 40755 2 0 0 0 0.0 - - -
`, len(body), d.object(body).Payload, d.object(body).Digest)))
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	if _, err := composefs.WriteImage(&image, tree, composefs.ImageOptions{MinVersion: 1, MaxVersion: 1, Algorithm: composefs.SHA512}); err != nil {
		t.Fatal(err)
	}
	object := d.object(image.Bytes())
	d.digest, d.image = object.Digest.String(), filepath.Join(d.dir, "composefs/objects", object.Payload)
	d.sh(`cd "$SYSROOT" && mkdir -p composefs/images "state/deploy/$DIGEST/etc" state/os/default/var
		ln -s "../objects/${DIGEST:0:2}/${DIGEST:2}" "composefs/images/$DIGEST"
		ln -s ../../os/default/var "state/deploy/$DIGEST/var"
		echo deployment >"state/deploy/$DIGEST/etc/default"
		echo shared >state/os/default/var/file`)
	return d
}

// object writes an object of the repository.
func (d *disk) object(body []byte) composefs.File {
	d.t.Helper()
	h := fsverity.New(composefs.SHA512)
	_, _ = h.Write(body)
	f := composefs.Object(h.Sum())
	name := filepath.Join(d.dir, "composefs/objects", f.Payload)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(name, body, 0o644); err != nil {
		d.t.Fatal(err)
	}
	return f
}

// run runs a script in a mount namespace of its own, where mounts are shared and
// the disk is one, as in an initramfs of systemd's. In it boot runs the program
// with a kernel command line.
func (d *disk) run(script string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	prelude := `mkdir -p "$SYSROOT"; mount --make-rshared /; mount --bind "$SYSROOT" "$SYSROOT"
		mount --make-private "$SYSROOT"; mount --make-shared "$SYSROOT"; cd "$SYSROOT"
		boot() { ` + asProgram + `=1 "$PROGRAM" --sysroot "$SYSROOT" --config "$CONFIG" --cmdline "$1"; }
`
	cmd := exec.CommandContext(d.t.Context(), "unshare", "--mount", "--propagation", "private", "bash", "-ec", prelude+script)
	cmd.Env = append(os.Environ(), "PROGRAM="+self, "SYSROOT="+d.dir, "DIGEST="+d.digest, "CONFIG="+d.config, "IMAGE="+d.image)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// sh runs a script that must succeed.
func (d *disk) sh(script string) string {
	d.t.Helper()
	out, err := d.run(script)
	if err != nil {
		d.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

// refuses checks that the program fails, says each of the words, and leaves the
// disk where it was.
func (d *disk) refuses(script, cmdline string, words ...string) {
	d.t.Helper()
	out, err := d.run(script + `
		boot "` + cmdline + `" && exit 1
		[ -d "$SYSROOT/composefs" ] || echo "the disk is gone"
		if grep -q ' /run/kedge-initramfs-' /proc/self/mountinfo; then echo "mounts are left"; fi`)
	if err != nil {
		d.t.Errorf("the program did not fail: %v\n%s", err, out)
	}
	for _, w := range append(words, "CANNOT BE BOOTED", "choose the previous entry") {
		if !strings.Contains(out, strings.ReplaceAll(w, "$IMAGE", d.dir+"/composefs/images/"+d.digest)) {
			d.t.Errorf("the program does not say %q:\n%s", w, out)
		}
	}
	if strings.Contains(out, "the disk is gone") || strings.Contains(out, "mounts are left") {
		d.t.Errorf("the program left something:\n%s", out)
	}
}

func TestRoot(t *testing.T) {
	d := newDisk(t)
	d.sh(`boot "root=LABEL=x composefs=?$DIGEST rw" | grep "$DIGEST without fs-verity"
		cd "$SYSROOT"
		[ "$(sha256sum <usr/file)" = "$(yes contents | head -n 10000 | sha256sum)" ]
		if touch usr/new 2>/dev/null; then echo "the root can be written"; exit 1; fi
		[ "$(cat etc/default)" = deployment ]
		[ "$(cat var/file)" = shared ]
		echo new >etc/new; echo new >var/new
		[ -d "sysroot/state/deploy/$DIGEST" ]
		[ "$(cat "sysroot/state/deploy/$DIGEST/etc/new")" = new ]
		[ "$(cat sysroot/state/os/default/var/new)" = new ]
		if touch sysroot/new 2>/dev/null; then echo "the disk can be written"; exit 1; fi
		[ "$(findmnt --noheadings --output SOURCE --mountpoint "$SYSROOT" | tail -n 1)" = "composefs:$DIGEST" ]
		if grep -q ' /run/kedge-initramfs-' /proc/self/mountinfo; then cat /proc/self/mountinfo; exit 1; fi
		before=$(wc -l </proc/self/mountinfo)
		boot "composefs=?$DIGEST" | grep already
		[ "$(wc -l </proc/self/mountinfo)" = "$before" ]`)
	d.sh(`[ "$(cat "$SYSROOT/state/os/default/var/new")" = new ]`)
	d.sh(`boot "root=LABEL=x rw" | grep "nothing to do"; [ -d "$SYSROOT/composefs" ]`)
}

// TestOtherMounts mounts the root in the ways that an image's configuration may
// ask for, each an overlay on the image's own.
func TestOtherMounts(t *testing.T) {
	d := newDisk(t)
	boot := func(config, script string) {
		t.Helper()
		if err := os.WriteFile(d.config, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		d.sh(`boot "composefs=?$DIGEST"; cd "$SYSROOT"; ` + script)
	}
	boot("[etc]\nmount = \"none\"\n[var]\nmount = \"none\"", `[ "$(cat etc/default)" = image ]; [ ! -e var/file ]; ! touch etc/new 2>/dev/null`)
	boot("[etc]\ntransient = true", `[ "$(cat etc/default)" = image ]; echo changed >etc/default; [ "$(cat etc/default)" = changed ]`)
	boot("[etc]\nmount = \"overlay\"", `[ "$(cat etc/default)" = image ]; echo kept >etc/default`)
	boot("[etc]\nmount = \"overlay\"", `[ "$(cat etc/default)" = kept ]; echo more >etc/more`)
	d.sh(`[ "$(cat "$SYSROOT/state/deploy/$DIGEST/etc/upper/more")" = more ]`)
	boot("[root]\ntransient = true\n[etc]\ntransient = true\n[var]\nmount = \"bind\"", `
		[ "$(findmnt --noheadings --output SOURCE --mountpoint "$SYSROOT" | tail -n 1)" = "transient:composefs=$DIGEST" ]
		echo new >usr/new; echo new >etc/new; [ "$(cat var/file)" = shared ]; [ -d sysroot/composefs ]
		boot "composefs=?$DIGEST" | grep already`)
	boot("[root]\ntransient = true", `[ ! -e usr/new ] && [ ! -e etc/new ]`)
}

func TestRefusals(t *testing.T) {
	d := newDisk(t)
	optional := "composefs=?$DIGEST"
	d.refuses(":", "composefs=$DIGEST", "$IMAGE has no fs-verity")
	d.refuses(":", "composefs=?abc", `"abc" is no fs-verity digest`)
	d.refuses(`mv "$IMAGE" "$IMAGE.away"; trap 'mv "$IMAGE.away" "$IMAGE"' EXIT`, optional, "$IMAGE", "no such file")
	d.refuses(`cp "$IMAGE" "$IMAGE.whole"; trap 'mv "$IMAGE.whole" "$IMAGE"' EXIT
		printf x | dd of="$IMAGE" bs=1 seek=3000 conv=notrunc status=none`, optional, "$IMAGE is not the image that the kernel argument names: its digest is")
	d.refuses(`mv "$IMAGE" "$IMAGE.away"; ln -s /etc/passwd "$IMAGE"; trap 'mv "$IMAGE.away" "$IMAGE"' EXIT`, optional, "$IMAGE", "cross-device link")
	d.refuses(`mv "$IMAGE" "$IMAGE.away"; mkfifo "$IMAGE"; trap 'mv -f "$IMAGE.away" "$IMAGE"' EXIT`, optional, "$IMAGE is no regular file")
	d.refuses(`s=$SYSROOT/state/deploy/$DIGEST; mv "$s" "$s.away"; trap 'mv "$s.away" "$s"' EXIT`, optional,
		"mount /etc", "state/deploy/"+d.digest+"/etc", "the deployment's state was removed")
	d.refuses(`echo "[etc]
mount = \"tmpfs\"" >"$CONFIG"; trap 'rm "$CONFIG"' EXIT`, optional, d.config, `"tmpfs" is no way to mount`)
	out, err := d.run(`boot "composefs=?$DIGEST"; boot "composefs=?${DIGEST//[0-9]/a}" && exit 1; true`)
	if err != nil || !strings.Contains(out, "two programs set up the root") {
		t.Errorf("with another image mounted: %v\n%s", err, out)
	}
	d.sh(`boot "` + optional + `"`) // and the disk is whole after all that
}

// TestSmall keeps out of the initramfs what has no business there: code that
// talks to a network, and whole libraries for the sake of one function.
func TestSmall(t *testing.T) {
	const most = 6_000_000
	lab.Need(t, "go")
	binary := filepath.Join(t.TempDir(), "kedge-initramfs")
	if _, err := lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "build", "-C", lab.SourceDir(),
		"-trimpath", "-tags", lab.BuildTags, "-ldflags", "-s -w", "-o", binary, "./cmd/kedge-initramfs"); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > most {
		t.Errorf("the program has %d bytes, want at most %d", st.Size(), most)
	}
	out, err := lab.Command(t.Context(), "go", "list", "-C", lab.SourceDir(), "-tags", lab.BuildTags, "-deps", "./cmd/kedge-initramfs")
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(out)
	if !slices.Contains(deps, "github.com/kedge-os/kedge/internal/setuproot") {
		t.Fatalf("go list says nothing of use:\n%s", out)
	}
	for _, d := range deps {
		if d == "net" || strings.HasPrefix(d, "net/") || d == "crypto/tls" || strings.HasPrefix(d, "go.podman.io/") ||
			strings.HasSuffix(d, "/pkg/ocibridge") || strings.HasSuffix(d, "/pkg/host") {
			t.Errorf("the program links %s", d)
		}
	}
}
