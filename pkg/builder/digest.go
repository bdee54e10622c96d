// Package builder does what image builders ask of kedge: it looks at images and
// directories, needs no host that kedge keeps, and changes nothing.
package builder

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// DigestOptions say which digest of an image is asked for.
type DigestOptions struct {
	Raw      bool               // the tree as a container shows it, not as it is booted
	KeepUser bool               // user.* xattrs are part of it
	SHA256   bool               // by sha256 in place of bootc's sha512
	Sysroot  string             // whose signature policy and credentials count; "" is /
	Logger   *slog.Logger       // nil: none
	Progress ocibridge.Progress // nil: none
}

// Root is the root file system of an image, or of a directory, as the composefs
// backend has it.
type Root struct {
	Digest composefs.Digest // of the composefs image: what composefs= names
	Tree   *composefs.Tree
}

// WriteDump writes the root in the format of composefs-dump(5).
func (r *Root) WriteDump(w io.Writer) error { return composefs.WriteDump(w, r.Tree) }

// Digest computes the root of what, an image as the command line names it, or a
// directory (a path that begins with "/" or "."). Of an image the layers are
// read, and nothing is stored.
func Digest(ctx context.Context, what string, o DigestOptions) (*Root, error) {
	r, err := digest(ctx, what, o)
	if err != nil {
		return nil, fmt.Errorf("compute the digest of %s: %w", what, err)
	}
	return r, nil
}

func digest(ctx context.Context, what string, o DigestOptions) (*Root, error) {
	alg := composefs.SHA512
	if o.SHA256 {
		alg = composefs.SHA256
	}
	m := composefs.NewMeter(alg)
	read := readImage
	if isDir(what) {
		read = readDir
	}
	tree, err := read(ctx, m, what, o)
	if err != nil {
		return nil, err
	}
	if tree, err = composefs.Prepare(tree, composefs.PrepareOptions{Boot: !o.Raw, KeepUser: o.KeepUser, Open: m.OpenContent}); err != nil {
		return nil, err
	}
	root := &Root{}
	if root.Tree, err = composefs.FromTree(tree, m.File); err != nil {
		return nil, err
	}
	form := composefs.V1
	form.Algorithm = alg
	info, err := composefs.WriteImage(io.Discard, root.Tree, form)
	root.Digest = info.Digest
	return root, err
}

func isDir(what string) bool { return filepath.IsAbs(what) || strings.HasPrefix(what, ".") }

func readDir(ctx context.Context, m *composefs.Meter, path string, _ DigestOptions) (*fstree.Tree, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return m.ReadDir(ctx, root)
}

// meterStore makes a Meter an ocibridge.Store.
type meterStore struct{ *composefs.Meter }

func (s meterStore) Begin(string) (ocibridge.LayerWriter, error) { return s.Meter, nil }

func readImage(ctx context.Context, m *composefs.Meter, image string, o DigestOptions) (*fstree.Tree, error) {
	src, err := openImage(ctx, image, o)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	src.Plain()
	img, err := src.Import(ctx, meterStore{m})
	if err != nil {
		return nil, err
	}
	return img.Tree, nil
}

func openImage(ctx context.Context, image string, o DigestOptions) (*ocibridge.Source, error) {
	ref, err := ocibridge.ParseReference(image, "")
	if err != nil {
		return nil, err
	}
	return ocibridge.Open(ctx, ref, ocibridge.Options{
		Root: o.Sysroot, AllowUnbootable: true, AllowPlatform: true, Logger: o.Logger, Progress: o.Progress,
	})
}

// Compare returns the first difference of two roots, in the order of a walk, or
// nil. A and B are the whole dump lines where both have the path.
func Compare(a, b *Root) (*v1.DigestDifference, error) {
	if a.Digest == b.Digest {
		return nil, nil
	}
	var first *v1.DigestDifference
	stop := fault.New(fault.Internal, "", "found")
	err := composefs.Diff(a.Tree, b.Tree, func(c composefs.Change) error {
		first = &v1.DigestDifference{Path: c.Path}
		switch {
		case c.A == nil:
			first.Field = "only in B"
		case c.B == nil:
			first.Field = "only in A"
		default:
			first.Field = strings.Join(c.Fields, ", ")
			first.A, first.B = dumpLine(c.Path, c.A), dumpLine(c.Path, c.B)
		}
		return stop
	})
	if first == nil && err == nil {
		err = fault.New(fault.Internal, "", "the digests differ but no path does")
	}
	if first != nil {
		err = nil
	}
	return first, err
}

func dumpLine(path string, n *composefs.Inode) string {
	return string(composefs.AppendDumpLine(nil, path, n))
}
