// Package etcmerge carries a machine's changes to /etc from one root to the
// next: a three-way merge of whole files, as libostree does it.
//
//	base   the old root's defaults   (its /usr/etc)
//	local  the old root's /etc       (defaults and what people changed)
//	image  the new root's defaults   (its /usr/etc)
//
// What differs between base and local is a local change and wins; everything
// else is the new image's. A file that is gone from local stays gone.
//
// Plan reads and decides, Write makes a directory look like the plan. Write
// compares before it writes, so a second Write after a few more local changes
// costs only those: that is how a staged deployment's /etc is brought up to
// date at shutdown. Neither follows a symlink or leaves the directories given.
//
// Where libostree and this package differ, on purpose:
//   - a change of owner, mode or extended attributes alone is a change, for
//     directories too (libostree ignores attributes, and directories);
//   - a directory's attributes come from the image unless they were changed
//     locally (libostree takes the local ones for each parent of a change);
//   - a directory replaced locally by a file or symlink stays replaced
//     (libostree refuses unless the image dropped the directory).
//
// SELinux labels are never a change: those of /usr/etc and /etc differ anyway.
package etcmerge

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Kind is what was done to a path locally.
type Kind uint8

// The kinds of local change.
const (
	Added Kind = iota + 1
	Modified
	Removed
	// Ignored is a local socket, fifo or device, which is never carried over.
	Ignored
)

// String returns the kind as users read it.
func (k Kind) String() string {
	return [...]string{"", "added", "modified", "removed", "ignored"}[k]
}

// ImageSide is what the new image did to the same path.
type ImageSide uint8

// What the new image did.
const (
	// ImageSame: the image did not touch the path.
	ImageSame ImageSide = iota
	// ImageChanged: the image changed the path too; the local version wins.
	ImageChanged
	// ImageRemoved: the image dropped the path; the local version stays.
	ImageRemoved
	// ImageType: the image has a directory where the local version is none, or
	// the other way round, and neither can be had with the other. Nothing is
	// merged while one of these is left.
	ImageType
)

// String returns the side as users read it.
func (s ImageSide) String() string {
	return [...]string{"unchanged", "changed", "removed", "type conflict"}[s]
}

// Change is one local change and what the new image did to the same path.
type Change struct {
	Path  string // below /etc, without a leading slash
	Kind  Kind
	Image ImageSide
}

// Conflict reports whether both sides changed the path.
func (c Change) Conflict() bool { return c.Image != ImageSame }

// Merge is what a new /etc is to look like.
type Merge struct {
	// Changes are the local changes in the order of their paths.
	Changes []Change

	local, image source.Dir
	root         *node
}

// node is an entry of the new /etc.
type node struct {
	name     string
	st       *unix.Stat_t
	local    bool // its inode is the local one, else the image's
	children []*node
}

func (n *node) isDir() bool { return isDir(n.st) }

func isDir(st *unix.Stat_t) bool { return st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR }

func isPlain(st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR:
		return true
	}
	return false
}

// Plan computes the merge. base and local may both be nil: then the new /etc
// is the image's. The directories must stay open until after the last Write.
//
// A type conflict is no error here, so that every one can be shown; see
// Refused.
func Plan(ctx context.Context, base, local, image source.Dir) (*Merge, error) {
	p := &planner{ctx: ctx}
	root := &node{}
	var err error
	if root.st, err = image.Lstat("."); err != nil {
		return nil, err
	}
	if local != nil {
		b, err := base.Lstat(".")
		if err != nil {
			return nil, err
		}
		l, err := local.Lstat(".")
		if err != nil {
			return nil, err
		}
		if !sameMeta(b, l) {
			root.st, root.local = l, true
		}
	}
	if root.children, _, err = p.dir("", base, local, image); err != nil {
		return nil, err
	}
	slices.SortStableFunc(p.changes, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return &Merge{Changes: p.changes, local: local, image: image, root: root}, nil
}

// Refused returns the Conflict error that names every type conflict, or nil.
func (m *Merge) Refused() error {
	var paths []string
	for _, c := range m.Changes {
		if c.Image == ImageType {
			paths = append(paths, "/etc/"+c.Path)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "move the local file or directory away, or make it what the image has, and run the command again",
		"merge /etc: file and directory stand against each other at %s", strings.Join(paths, ", "))
}
