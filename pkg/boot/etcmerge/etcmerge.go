// Package etcmerge carries a machine's changes to /etc from one root to the
// next: a three-way merge.
//
//	base   the old root's defaults   (its /usr/etc)
//	local  the old root's /etc       (defaults and what people changed)
//	image  the new root's defaults   (its /usr/etc)
//
// What differs between base and local is a local change and wins; everything
// else is the new image's. A file that is gone from local stays gone. Contents
// and attributes (owner, mode, extended attributes) are two things: where only
// one of them was changed, the other is the new image's. Files that are lists of
// lines which package lines understands are merged line by line. A Policy says
// otherwise for some paths.
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
//     (libostree refuses unless the image dropped the directory);
//   - files of lines are merged, and rules are followed.
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
	// Attributes: only owner, mode or extended attributes were changed.
	Attributes
)

// String returns the kind as users read it.
func (k Kind) String() string {
	return [...]string{"", "added", "modified", "removed", "ignored", "attributes"}[k]
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

// Outcome is what the new /etc has at a path that was changed locally.
type Outcome uint8

// The outcomes.
const (
	// Kept: the machine's version, or its absence.
	Kept Outcome = iota
	// Merged: something of both sides.
	Merged
	// Taken: the image's version, because a rule says so.
	Taken
	// Refused: nothing is merged while this is left.
	Refused
)

// String returns the outcome as users read it.
func (o Outcome) String() string { return [...]string{"kept", "merged", "taken", "refused"}[o] }

// Change is one local change and what the new image did to the same path.
type Change struct {
	Path    string // below /etc, without a leading slash
	Kind    Kind
	Image   ImageSide
	Outcome Outcome
	// Notes say what a merge of lines could not settle, or why there was none.
	Notes []string
}

// Conflict reports whether somebody should look at the path: both sides changed
// it and not all of both is in the new /etc, or the machine's change is gone.
func (c Change) Conflict() bool {
	return c.Outcome == Taken || c.Image != ImageSame && (c.Outcome != Merged || len(c.Notes) > 0)
}

// Merge is what a new /etc is to look like.
type Merge struct {
	// Changes are the local changes in the order of their paths.
	Changes []Change

	local, image source.Dir
	root         *node
}

// node is an entry of the new /etc.
type node struct {
	name  string
	st    *unix.Stat_t // of the side that its contents are from
	local bool         // that is the local one, else the image's
	// attrs and attrsLocal are the same of owner, mode and extended attributes.
	attrs      *unix.Stat_t
	attrsLocal bool
	merged     []byte // the contents, where they are of both sides; else nil
	children   []*node
}

// of returns an entry that is all of one side.
func of(name string, st *unix.Stat_t, local bool) *node {
	return &node{name: name, st: st, local: local, attrs: st, attrsLocal: local}
}

func (n *node) isDir() bool { return isDir(n.st) }

func isDir(st *unix.Stat_t) bool { return st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR }

func isRegular(st *unix.Stat_t) bool { return st != nil && st.Mode&unix.S_IFMT == unix.S_IFREG }

func isPlain(st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR:
		return true
	}
	return false
}

// Sides are what is merged. Base and Local may both be nil: then the new /etc is
// the image's.
type Sides struct {
	Base, Local, Image source.Dir
	Policy             Policy
}

// Plan computes the merge. The directories must stay open until after the last
// Write.
//
// A conflict that cannot be merged is no error here, so that every one can be
// shown; see Merge.Refused.
func Plan(ctx context.Context, s Sides) (*Merge, error) {
	p := &planner{ctx: ctx, policy: s.Policy}
	st, err := s.Image.Lstat(".")
	if err != nil {
		return nil, err
	}
	root := of("", st, false)
	if s.Local != nil {
		b, err := s.Base.Lstat(".")
		if err != nil {
			return nil, err
		}
		l, err := s.Local.Lstat(".")
		if err != nil {
			return nil, err
		}
		if !sameMeta(b, l) {
			root = of("", l, true)
		}
	}
	if root.children, _, err = p.dir("", 0, s.Base, s.Local, s.Image); err != nil {
		return nil, err
	}
	slices.SortStableFunc(p.changes, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return &Merge{Changes: p.changes, local: s.Local, image: s.Image, root: root}, nil
}

// Refused returns the Conflict error that names every path that stands in the
// way, or nil.
func (m *Merge) Refused() error {
	var types, ruled []string
	for _, c := range m.Changes {
		switch {
		case c.Outcome != Refused:
		case c.Image == ImageType:
			types = append(types, "/etc/"+c.Path)
		default:
			ruled = append(ruled, "/etc/"+c.Path)
		}
	}
	switch {
	case len(types) > 0:
		return fault.New(fault.Conflict, "move the local file or directory away, or make it what the image has, and run the command again",
			"merge /etc: file and directory stand against each other at %s", strings.Join(types, ", "))
	case len(ruled) > 0:
		return fault.New(fault.Conflict, "kedge etc reset gives up the local change; a rule in /etc/kedge/etc.d decides otherwise",
			"merge /etc: changed on this host and in the image, which a rule of the image or the host forbids: %s", strings.Join(ruled, ", "))
	}
	return nil
}
