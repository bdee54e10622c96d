package composefs

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// TestPrepareOwn: a tree that is given away becomes what a copy would.
func TestPrepareOwn(t *testing.T) {
	image := func() *fstree.Tree {
		tree := fstree.New()
		x := tree.Intern([]fstree.Xattr{{Name: "user.a", Value: "1"}, {Name: xattrCapability, Value: "c"}})
		file := func() *fstree.Inode { return &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: 1, Xattrs: x} }
		layer := fstree.NewLayer(
			fstree.Entry{Path: "usr", Inode: fstree.NewDir(0o700)}, fstree.Entry{Path: "usr/a", Inode: file()},
			fstree.Entry{Path: "usr/b", LinkTo: "usr/a", Kind: fstree.Hardlink}, fstree.Entry{Path: "run/x", Inode: file()},
			fstree.Entry{Path: "boot/x", Inode: file()}, fstree.Entry{Path: "sysroot", Inode: fstree.NewDir(0o755)})
		if err := tree.Apply(layer); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	for _, o := range []PrepareOptions{{}, {Boot: true}, {Boot: true, KeepUser: true}} {
		want, err := Prepare(image(), o)
		if err != nil {
			t.Fatal(err)
		}
		o.Own = true
		given := image()
		got, err := Prepare(given, o)
		if err != nil {
			t.Fatal(err)
		}
		if got != given {
			t.Error("the tree that was given away was copied")
		}
		if got.Lookup("usr/a") != got.Lookup("usr/b") {
			t.Error("two names of one file became two files")
		}
		_ = fstree.Diff(want, got, fstree.AllFields, func(c fstree.Change) error {
			t.Errorf("%+v: /%s differs in %s", o, c.Path, c.Fields)
			return nil
		})
	}
}
