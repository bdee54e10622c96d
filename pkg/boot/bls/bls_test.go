package bls_test

import (
	"slices"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/bls"
)

const sample = `# comment
title Debian GNU/Linux 13 (ostree:0)
version 2
linux /ostree/os-1/vmlinuz
options root=LABEL=root quiet ostree=/ostree/boot.1/os/1/0
initrd /ostree/os-1/initramfs.img
initrd /ostree/initramfs-overlays/ab.img
x-options-source-tuned nohz=full
	indented is no key
novalue
grub_users $grub_users
`

func TestParse(t *testing.T) {
	e := bls.Parse(sample)
	if v, _ := e.Get("title"); v != "Debian GNU/Linux 13 (ostree:0)" {
		t.Errorf("title = %q", v)
	}
	if l := e.Initrds(); !slices.Equal(l, []string{"/ostree/os-1/initramfs.img", "/ostree/initramfs-overlays/ab.img"}) {
		t.Errorf("initrds = %q", l)
	}
	if l := e.Extra(); !slices.Equal(l, []string{"x-options-source-tuned", "grub_users"}) {
		t.Errorf("keys that go with the deployment = %q", l)
	}
	for _, key := range []string{"novalue", "indented", "# comment"} {
		if _, ok := e.Get(key); ok {
			t.Errorf("%q was read as a key", key)
		}
	}
}

func TestEncodeOrder(t *testing.T) {
	const want = `title Debian GNU/Linux 13 (ostree:0)
version 2
options root=LABEL=root quiet ostree=/ostree/boot.1/os/1/0
linux /ostree/os-1/vmlinuz
initrd /ostree/os-1/initramfs.img
initrd /ostree/initramfs-overlays/ab.img
x-options-source-tuned nohz=full
grub_users $grub_users
`
	e := bls.Parse(sample)
	if got := string(e.Encode()); got != want {
		t.Errorf("encoded:\n%s\nwant libostree's order:\n%s", got, want)
	}
	c := e.Clone()
	c.Set("title", "other")
	c.Delete("version")
	if v, _ := e.Get("title"); v == "other" {
		t.Error("a change of the copy changed the entry")
	}
}

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		file, base string
		counter    *bls.Counter
		ok         bool
	}{
		{"ostree-2.conf", "ostree-2", nil, true},
		{"ostree-2-os.conf", "ostree-2-os", nil, true},
		{"ostree-2+3.conf", "ostree-2", &bls.Counter{Left: 3}, true},
		{"ostree-2+2-1.conf", "ostree-2", &bls.Counter{Left: 2, Done: 1}, true},
		{"a+b.conf", "a+b", nil, true},
		{"a+1-x.conf", "a+1-x", nil, true},
		{"a+99999999999.conf", "a+99999999999", nil, true},
		{".conf", "", nil, false},
		{"ostree-2.efi", "", nil, false},
	} {
		n, ok := bls.ParseName(c.file)
		same := (n.Counter == nil) == (c.counter == nil) && (n.Counter == nil || *n.Counter == *c.counter)
		if ok != c.ok || n.Base != c.base || !same {
			t.Errorf("name %s = %+v, %v; want base %q counter %v, %v", c.file, n, ok, c.base, c.counter, c.ok)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	// The examples of strverscmp(3) and the numbers that libostree writes.
	sorted := []string{"000", "00", "01", "010", "09", "0", "1", "2", "9", "10", "11", "100"}
	for i := range sorted {
		for j := range sorted {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := bls.CompareVersions(sorted[i], sorted[j]); got != want {
				t.Errorf("version %q against %q = %d, want %d", sorted[i], sorted[j], got, want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("title\t\ninitrd  x\n")
	f.Fuzz(func(t *testing.T, text string) {
		e := bls.Parse(text)
		once := string(e.Encode())
		if twice := string(bls.Parse(once).Encode()); twice != once {
			t.Fatalf("encoded %q, read and encoded again %q", once, twice)
		}
	})
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.10", "1.9")
	f.Add("007", "07")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := bls.CompareVersions(a, b), bls.CompareVersions(b, a); x != -y {
			t.Fatalf("%q against %q is %d, the other way round %d", a, b, x, y)
		}
		if (bls.CompareVersions(a, b) == 0) != (a == b) {
			t.Fatalf("%q and %q compare as equal", a, b)
		}
	})
}
