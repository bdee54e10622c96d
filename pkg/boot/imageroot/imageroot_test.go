package imageroot

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text, in which digests have names, with a file in testdata.
func golden(t *testing.T, name, got string, digests map[string]string) {
	t.Helper()
	for digest, as := range digests {
		got = strings.ReplaceAll(got, digest, as)
	}
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

// entries returns the directory of entries as one text.
func (w *world) entries(dir string) string {
	w.t.Helper()
	var b strings.Builder
	for _, n := range w.names(filepath.Join("boot", dir)) {
		b.WriteString("== " + n + "\n" + w.read(filepath.Join("boot", dir, n)))
	}
	return b.String()
}

func TestFirstDeployment(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	digest := w.image(osTree("kernel one").with(files{"usr/lib/bootc/kargs.d/10.toml": `kargs = ["quiet"]`}))
	d := w.deploy(s, request(s, digest))
	if d.Digest != digest || d.Serial != 0 || d.Index != 0 || d.SharesState || d.VerityOptional || d.Name() != digest {
		t.Errorf("deployment = %+v, want %s alone", d, digest)
	}
	names := map[string]string{digest: "DIGEST"}
	golden(t, "first.origin", w.read(d.OriginPath()), names)
	golden(t, "first.entries", w.entries(entriesDir), names)
	if link, _ := os.Readlink(filepath.Join(w.dir, d.Dir(), "var")); link != "../../os/default/var" {
		t.Errorf("var -> %q", link)
	}
	w.wantNames(d.Dir(), "etc", "var", digest+".origin")
	w.wantNames(d.Dir()+"/etc", "app", "conf", "link")
	if got := w.read(varDir + "/lib/app/data"); got != "seed" {
		t.Errorf("/var/lib/app/data = %q, want the image's", got)
	}
	if got := w.read("boot/bootc_composefs-" + digest + "/vmlinuz"); got != "kernel one" {
		t.Errorf("vmlinuz = %q", got)
	}
	w.wantNames("boot", "bootc_composefs-"+digest, "loader")
	w.wantNames("boot/loader", "entries")

	// The second continues /etc and kernel arguments; /var is the machine's.
	w.write(d.Dir()+"/etc/mine", "1")
	w.write(varDir+"/lib/app/data", "changed")
	second := w.image(osTree("kernel two").with(files{"etc/conf": "default 2", "var/lib/app/new": "x"}))
	d2 := w.deploy(s, request(s, second))
	if got := w.read(d2.Dir()+"/etc/mine") + w.read(d2.Dir()+"/etc/conf"); got != "1default 2" {
		t.Errorf("/etc of the second = %q, want local change and new default", got)
	}
	if got := w.read(varDir + "/lib/app/data"); got != "changed" {
		t.Errorf("/var/lib/app/data = %q, want the machine's", got)
	}
	w.gone(varDir + "/lib/app/new")
	names[second] = "DIGEST2"
	golden(t, "second.entries", w.entries(entriesDir), names)
	if got := d2.Kargs().String(); got != "root=UUID=1 rw" {
		t.Errorf("kernel arguments = %q, want those of the machine without the old image's", got)
	}
	must(t, s.Write(context.Background(), s.WithDefault(s.Deployments()[1])))
	if s.Deployments()[0].Digest != digest || len(s.Deployments()) != 2 {
		t.Errorf("default after rollback = %s", s.Deployments()[0].Name())
	}
}

// TestPlaces: GRUB, systemd-boot and bootc see the entries in the order of the
// list, however many there are.
func TestPlaces(t *testing.T) {
	for n := 1; n <= 12; n++ {
		var files, keys []string
		d := &Deployment{Entry: entryOf("ID=os; VERSION=1")}
		for i := range n {
			p := position{i, n}
			files, keys = append(files, p.file(d, d)), append(keys, p.sortKey("os"))
		}
		if down := slices.Sorted(slices.Values(files)); n > 1 && (slices.IsSorted(files) || !slices.Equal(reversed(down), files)) {
			t.Errorf("file names of %d entries are not in falling order: %q", n, files)
		}
		if !slices.IsSorted(keys) || len(slices.Compact(slices.Clone(keys))) != n {
			t.Errorf("sort-keys of %d entries are not in rising order: %q", n, keys)
		}
	}
	one, two := position{0, 2}, position{1, 2}
	if one.release() != "1" || two.release() != "0" || one.sortKey("a-b") != "bootc-a-b-0" || two.sortKey("a-b") != "bootc-a-b-1" || (position{0, 1}).release() != "1" {
		t.Error("the first two entries do not have bootc's places")
	}
}

func reversed(list []string) []string { slices.Reverse(list); return list }

func TestNames(t *testing.T) {
	for _, c := range []struct{ id, version, file, want string }{
		{"fedora", "42", "", "bootc_fedora-42-1.conf"},
		{"fedora-coreos", "42.20250623.3.1", "", "bootc_fedora_coreos-42.20250623.3.1-1.conf"},
		{"x", "13 (trixie)/sid", "", "bootc_x-13__trixie__sid-1.conf"},
		{"x", "1.2+3", "", "bootc_x-1.2_3-1.conf"},
		{"x", "1-2", "", "bootc_x-1-2-1.conf"},
		{"x", "1", "bootc_x-1-0+2-1.conf", "bootc_x-1-1+2-1.conf"},
		{"x", strings.Repeat("9", 300), "", "bootc_x-" + strings.Repeat("9", 100) + "-1.conf"},
	} {
		d := &Deployment{Entry: entryOf("ID=" + c.id + "; VERSION=" + c.version), entryFile: c.file}
		if got := (position{0, 1}).file(d, d); got != c.want {
			t.Errorf("file name for ID %q and version %q = %q, want %q", c.id, c.version, got, c.want)
		}
	}
}

func TestImageKarg(t *testing.T) {
	a, b := strings.Repeat("a", 128), strings.Repeat("b", 64)
	for line, want := range map[string]string{
		"quiet composefs=" + a:                                     a,
		"composefs=?" + b + " rw":                                  "?" + b,
		"composefs=" + a + " composefs.digest=v1-sha256-12:" + b:   b,
		"composefs.digest=?v1-sha512-12:" + a:                      "?" + a,
		"composefs=short":                                          "",
		"composefs_backup=" + a:                                    "",
		"composefs=" + strings.ToUpper(a):                          "",
		"root=x":                                                   "",
		"composefs=" + a + " composefs=" + strings.Repeat("c", 64): a,
	} {
		digest, optional, ok := ImageOf(karg.Parse(line))
		got := digest
		if optional {
			got = "?" + got
		}
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("image of %.40q = %q, want %q", line, got, want)
		}
	}
}

func TestVerityOptional(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	r := request(s, w.image(osTree("k")))
	r.VerityOptional = true
	d := w.deploy(s, r)
	options, _ := d.Entry.Get("options")
	if !d.VerityOptional || options != "root=UUID=1 rw composefs=?"+d.Digest {
		t.Errorf("options = %q, optional %v", options, d.VerityOptional)
	}
}

func TestBadImages(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	w.deploy(s, request(s, w.image(osTree("k0"))))
	before := w.snapshot()
	lib := "usr/lib/modules/"
	for _, c := range []struct {
		name, text string
		files      files
		kind       fault.Kind
	}{
		{"no kernel", "no kernel", osTree("k").without(lib+"6.1.0/vmlinuz", lib+"6.1.0/initramfs.img"), fault.Conflict},
		{"no initramfs", "no initramfs", osTree("k").without(lib + "6.1.0/initramfs.img"), fault.Conflict},
		{"two kernels", "two kernels, 6.1.0 and 6.2.0", osTree("k").with(files{lib + "6.2.0/vmlinuz": "x"}), fault.Conflict},
		{"no etc", "no /etc", osTree("k").without("etc/conf", "etc/app/app.conf", "etc/link", "etc/.updated"), fault.Conflict},
		{"kernel arguments", "kernel arguments", osTree("k").with(files{"usr/lib/bootc/kargs.d/x.toml": "karg=1"}), fault.Corrupt},
		{"kernel arguments that are a directory", "not a regular file", osTree("k").with(files{"usr/lib/bootc/kargs.d/x.toml/": ""}), fault.Corrupt},
	} {
		_, err := s.Deploy(context.Background(), request(s, w.image(c.files)))
		wantKind(t, err, c.kind, c.text)
		if after := w.snapshot(); after != before {
			t.Errorf("%s: the sysroot changed to\n%s", c.name, after)
		}
	}
	_, err := s.Deploy(context.Background(), request(s, strings.Repeat("f", 128)))
	wantKind(t, err, fault.NotFound, "image")
	_, err = s.Deploy(context.Background(), request(s, "../x"))
	wantKind(t, err, fault.Usage, "digest")
	if after := w.snapshot(); after != before {
		t.Errorf("the sysroot changed to\n%s", after)
	}
}

func TestEtcConflictIsRefused(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	d := w.deploy(s, request(s, w.image(osTree("k1"))))
	w.write(d.Dir()+"/etc/app/local", "1")
	before := w.snapshot()
	_, err := s.Deploy(context.Background(), request(s, w.image(osTree("k2").without("etc/app/app.conf").with(files{"etc/app": "a file"}))))
	wantKind(t, err, fault.Conflict, "/etc/app")
	if after := w.snapshot(); after != before {
		t.Errorf("the sysroot changed to\n%s", after)
	}
}

func TestEtcChanges(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	d := w.deploy(s, request(s, w.image(osTree("k1"))))
	w.write(d.Dir()+"/etc/conf", "mine")
	w.write(d.Dir()+"/etc/new", "1")
	must(t, os.RemoveAll(filepath.Join(w.dir, d.Dir(), "etc/app")))
	w.deploy(s, request(s, w.image(osTree("k2").with(files{"etc/conf": "theirs"}))))
	var got []string
	for _, c := range s.EtcChanges() {
		got = append(got, c.Path+" "+c.Kind.String()+" "+c.Image.String())
	}
	if want := []string{"app removed unchanged", "conf modified changed", "new added unchanged"}; !slices.Equal(got, want) {
		t.Errorf("changes = %q, want %q", got, want)
	}
}

func TestNoSysroot(t *testing.T) {
	_, err := Open(t.TempDir(), Options{Host: t.TempDir()})
	wantKind(t, err, fault.NotFound, "state/deploy")
}

// TestMarkerOfTheMachine: work on another sysroot leaves alone what the running
// machine has staged.
func TestMarkerOfTheMachine(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	s, _ := w.booted(osTree("k1"))
	w.stage(s, w.image(osTree("k2")))
	other.host = w.host
	o := other.open()
	other.deploy(o, request(o, other.image(osTree("k3"))))
	if o.Staged() != nil {
		t.Error("the machine's staged deployment is listed in another sysroot")
	}
	must(t, s.Load())
	if s.Staged() == nil {
		t.Error("what the machine had staged is gone")
	}
}

func TestLock(t *testing.T) {
	w := newWorld(t)
	w.open()
	other, err := Open(w.dir, w.options())
	must(t, err)
	defer other.Close()
	wantKind(t, other.Lock(context.Background()), fault.Busy, "process")
	wantKind(t, other.Cleanup(context.Background()), fault.Internal, "not locked")
}
