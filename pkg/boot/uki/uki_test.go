package uki_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

func decode(data []byte) (*uki.Image, error) {
	return uki.Decode(bytes.NewReader(data), int64(len(data)))
}

func TestDecode(t *testing.T) {
	u, err := decode(loadertest.PE(
		".sbat", "sbat,1,x\n", ".osrel", "ID=debian\n", ".uname", "6.12.0\x00\x00", ".cmdline", "composefs=abc \"a b\" quiet\n\x00",
		".linux", "kernel", ".initrd", "initrd", ".dtbauto", "a", ".dtbauto", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if got := u.Cmdline.String(); got != `composefs=abc "a b" quiet` || len(u.Cmdline) != 3 {
		t.Errorf("the command line is %q", got)
	}
	if u.Version != "6.12.0" || u.OSRelease != "ID=debian" || u.SBAT != "sbat,1,x" {
		t.Errorf("decoded %+v", u)
	}
	want := sha256.Sum256([]byte("kernelinitrd"))
	for range 2 {
		if got, err := u.BootDigest(); got != hex.EncodeToString(want[:]) || err != nil {
			t.Errorf("the boot digest is %s, %v, want %x", got, err, want)
		}
	}
}

func TestBadImages(t *testing.T) {
	good := loadertest.UKI("composefs=abc", "kernel", "initrd")
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"nothing":         {nil, "not a PE file"},
		"text":            {[]byte(strings.Repeat("#!/bin/sh\n", 20)), "not a PE file"},
		"cut in headers":  {good[:0x60], "not a PE file"},
		"cut in sections": {good[:len(good)-1], "behind the end"},
		"no kernel":       {loadertest.PE(".cmdline", "x", ".initrd", "x"), "no section .linux"},
		"no initrd":       {loadertest.PE(".cmdline", "x", ".linux", "x"), "no section .initrd"},
		"no command line": {loadertest.PE(".initrd", "x", ".linux", "x"), "no section .cmdline"},
		"two of them":     {loadertest.PE(".initrd", "x", ".linux", "x", ".cmdline", "a", ".cmdline", "b"), "two sections .cmdline"},
		"profiles":        {loadertest.PE(".initrd", "x", ".linux", "x", ".cmdline", "a", ".profile", "b"), "profiles"},
		"long":            {loadertest.UKI(strings.Repeat("x", 65<<10), "kernel", "initrd"), "more than"},
		"binary":          {loadertest.UKI("a\x00b", "kernel", "initrd"), "not text"},
	} {
		if _, err := decode(c.data); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), c.words) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v, want a conflict with %q and a hint", name, err, c.words)
		}
	}
}

func TestFind(t *testing.T) {
	for _, c := range []struct {
		names []string
		found bool
		kind  fault.Kind
	}{
		{nil, false, 0},
		{[]string{"a.efi"}, true, 0},
		{[]string{"a.efi", "b.addon.efi", "a.efi.extra.d/", "readme"}, true, 0},
		{[]string{"b.addon.efi"}, false, 0},
		{[]string{"a.efi", "b.efi"}, false, fault.Conflict},
		{[]string{"->a.efi"}, false, fault.Conflict},
	} {
		tree := fstree.New()
		dir := tree.Root
		for _, name := range strings.Split(uki.Dir, "/") {
			sub := fstree.NewDir(0o755)
			dir.Set(name, sub)
			dir = sub
		}
		for _, name := range c.names {
			if link, ok := strings.CutPrefix(name, "->"); ok {
				dir.Set(link, &fstree.Inode{Mode: 0o120777, Target: "elsewhere"})
			} else if sub, ok := strings.CutSuffix(name, "/"); ok {
				dir.Set(sub, fstree.NewDir(0o755))
			} else {
				dir.Set(name, &fstree.Inode{Mode: 0o100644})
			}
		}
		n, err := uki.Find(tree)
		if (n != nil) != c.found || fault.KindOf(err) != c.kind {
			t.Errorf("in %q: found %v, %v; want %v, %v", c.names, n != nil, err, c.found, c.kind)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(loadertest.UKI("composefs=abc", "kernel", "initrd"))
	f.Add(loadertest.PE(".profile", "x"))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := decode(data)
		if err != nil {
			return
		}
		if n := len(u.Cmdline.String()) + len(u.OSRelease) + len(u.SBAT) + len(u.Version); n > 4*64<<10 {
			t.Errorf("%d bytes of text of a file of %d", n, len(data))
		}
		if digest, err := u.BootDigest(); err != nil || len(digest) != 64 {
			t.Errorf("boot digest %q, %v", digest, err)
		}
	})
}
