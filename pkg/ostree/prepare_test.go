package ostree

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// memTree makes a tree of paths: "dir/" is a directory, "link>target" a
// symlink, "file=text" a file. Contents are found through the returned opener.
func memTree(paths ...string) (*fstree.Tree, OpenFunc) {
	t := fstree.New()
	contents := map[fstree.Digest]string{}
	for _, p := range paths {
		var n *fstree.Inode
		var path string
		switch {
		case strings.HasSuffix(p, "/"):
			n, path = fstree.NewDir(0o755), strings.TrimSuffix(p, "/")
		case strings.ContainsAny(p, ">=") && p[strings.IndexAny(p, ">=")] == '>':
			n = &fstree.Inode{Mode: unix.S_IFLNK | 0o700}
			path, n.Target, _ = strings.Cut(p, ">")
		default:
			var text string
			path, text, _ = strings.Cut(p, "=")
			n = &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: int64(len(text)), MtimeSec: 1}
			n.Content[0], n.Content[1] = byte(len(contents)), 1
			contents[n.Content] = text
		}
		dir := t.Root
		if parent := parentPath(path); parent != "" {
			for name := range strings.SplitSeq(parent, "/") {
				if dir.Lookup(name) == nil {
					dir.Set(name, fstree.NewDir(0o755))
				}
				dir = dir.Lookup(name)
			}
		}
		dir.Set(baseName(path), n)
	}
	t.Freeze()
	return t, func(d fstree.Digest) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader([]byte(contents[d]))), nil
	}
}

// listing returns the paths of a tree that are not directories with children.
func listing(t *fstree.Tree) []string {
	var out []string
	_ = t.Walk(func(path string, n *fstree.Inode) error {
		switch {
		case n.IsDir() && n.Len() == 0:
			out = append(out, path+"/")
		case !n.IsDir():
			out = append(out, path)
		}
		return nil
	})
	return out
}

func TestPrepareTopLevels(t *testing.T) {
	image := []string{
		"usr/bin/sh=x", "etc/conf=x", "var/lib/x=x", "boot/", "run/a=x", "tmp/b=x", "proc/c", "sys/", "dev/d=x",
		"opt/app=x", "srv/", "mnt>run/mnt", "sysroot/",
	}
	for _, tt := range []struct {
		name         string
		base         []string // files of the base beside usr/bin/sh and what is in every image
		image, want  []string
		derived, all bool
	}{
		{
			name: "plain", image: image, all: true,
			want: []string{"boot/", "dev/", "mnt", "opt/app", "proc/", "run/", "srv/", "sys/", "sysroot/", "tmp/", "usr/bin/sh", "usr/etc/conf", "var/lib/x"},
		},
		{
			name: "without composefs", base: []string{"sysroot/", "opt>var/opt", "run/ostree-booted", "usr/etc/conf=y"}, image: image, derived: true,
			want: []string{"dev/", "opt", "proc/", "run/ostree-booted", "sys/", "sysroot/", "tmp/", "usr/bin/sh", "usr/etc/conf", "var/lib/x"},
		},
		{
			name: "with composefs", base: []string{"sysroot/", "usr/lib/ostree/prepare-root.conf=[composefs]\nenabled = maybe\n"}, image: image, derived: true, all: true,
			want: []string{"boot/", "dev/", "mnt", "opt/app", "proc/", "run/", "srv/", "sys/", "sysroot/", "tmp/", "usr/bin/sh", "usr/etc/conf", "var/lib/x"},
		},
		{
			name: "a top level removed", base: []string{"sysroot/", "opt>var/opt"}, image: []string{"usr/bin/sh=x", "sysroot/"}, derived: true,
			want: []string{"opt", "sysroot/", "usr/bin/sh"},
		},
		{
			name: "both etc", image: []string{"etc/both=of etc", "etc/dir/a=x", "usr/etc/both=of usr", "usr/etc/dir/b=x", "usr/etc/own=x"}, all: true,
			want: []string{"usr/etc/both", "usr/etc/dir/a", "usr/etc/dir/b", "usr/etc/own"},
		},
		{
			name: "left by builders", image: []string{"usr/", "etc/hostname", "etc/resolv.conf=x", "etc/hosts"}, all: true,
			want: []string{"usr/etc/hosts", "usr/etc/resolv.conf"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, open := memTree(tt.image...)
			opts := PrepareOptions{Open: open, Derived: tt.derived}
			var before *fstree.Tree
			if tt.base != nil {
				opts.Base, opts.Open = memTree(append(tt.base, "usr/bin/sh=x")...)
				before, _ = memTree(append(tt.base, "usr/bin/sh=x")...)
				tree.Root.Lookup("usr").Set("shared", opts.Base.Lookup("usr/bin/sh"))
				tt.want = append(slices.Clone(tt.want), "usr/shared")
				slices.Sort(tt.want)
			}
			p, err := Prepare(tree, opts)
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(p.Tree); !slices.Equal(got, tt.want) {
				t.Errorf("the tree has\n%v, expected\n%v", got, tt.want)
			}
			if p.AllTopLevels != tt.all {
				t.Errorf("all top levels: %v, expected %v", p.AllTopLevels, tt.all)
			}
			if before != nil {
				_ = fstree.Diff(before, opts.Base, fstree.AllFields, func(c fstree.Change) error {
					t.Errorf("the base was changed at %s: %s", c.Path, c.Fields)
					return nil
				})
			}
			if n := p.Tree.Lookup("mnt"); n != nil && n.Mode != unix.S_IFLNK|0o777 {
				t.Errorf("a symlink has the mode %o, expected 0777 as on a disk", n.Mode)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	for name, paths := range map[string][]string{"etc": {"etc>usr/etc"}, "usr": {"usr>x", "etc/a=x"}} {
		tree, open := memTree(paths...)
		_, err := Prepare(tree, PrepareOptions{Open: open})
		t.Log(name)
		wantKind(t, err, fault.Conflict)
	}
	var files []string
	for _, e := range policyFiles() {
		if e.data != "" {
			files = append(files, e.name+"="+strings.ReplaceAll(e.data, "/etc(/.*)?", "/etc(/.*"))
		}
	}
	tree, open := memTree(files...)
	_, err := Prepare(tree, PrepareOptions{Open: open})
	wantKind(t, err, fault.Corrupt)
}

func TestPrepareLabels(t *testing.T) {
	var files []string
	for _, e := range policyFiles() {
		if e.data != "" {
			files = append(files, e.name+"="+e.data)
		}
	}
	tree, open := memTree(append(files, "proc/", "usr/nolabel/f=x", "usr/bin/f=x")...)
	own := tree.Intern([]fstree.Xattr{{Name: "security.selinux", Value: "own"}, {Name: "user.empty"}, {Name: "user.a", Value: "b"}})
	tree.Lookup("usr/nolabel/f").Xattrs = own
	tree.Lookup("usr/bin/f").Xattrs = own
	p, err := Prepare(tree, PrepareOptions{Open: open})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"": "system_u:object_r:root_t:s0\x00", "proc": "system_u:object_r:mnt_t:s0\x00", "usr/nolabel/f": "own",
		"usr/bin/f": "system_u:object_r:bin_t:s0\x00", "usr/etc/selinux/config": "system_u:object_r:etc_t:s0\x00",
	} {
		if got, _ := p.Tree.Lookup(path).Xattrs.Get(xattrSELinux); got != want {
			t.Errorf("/%s has the label %q, expected %q", path, got, want)
		}
	}
	x := p.Tree.Lookup("usr/bin/f").Xattrs
	if _, ok := x.Get("user.empty"); ok || len(x.All()) != 2 {
		t.Errorf("the xattrs are %v, expected the label and user.a", x.All())
	}

	// An ostree-chunked image without derived layers keeps its labels.
	base, open := memTree(append(files, "usr/bin/f=x")...)
	p, err = Prepare(base.Clone(), PrepareOptions{Open: open, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if x := p.Tree.Lookup("usr/bin/f").Xattrs; x != nil || p.Labels != nil {
		t.Errorf("a base without derived layers was labelled: %v", x.All())
	}
}
