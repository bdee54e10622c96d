package etcmerge

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge/lines"
	"github.com/kedge-os/kedge/pkg/boot/source"
)

// combine decides a file that all three have, and that is changed on the
// machine: body and attrs say what is as in the old image.
func (p *planner) combine(e entry, kind Kind, body, attrs bool) (*node, error) {
	imageBody, err := sameBody(e.b, e.i, e.name, e.base, e.image)
	if err != nil {
		return nil, err
	}
	imageAttrs, err := sameAttributes(e.b, e.i, e.name, e.base, e.image)
	if err != nil {
		return nil, err
	}
	if imageBody && imageAttrs {
		return p.settle(e, kind, ImageSame)
	}
	same, err := sameEntry(e.l, e.i, e.name, e.local, e.image)
	if err != nil {
		return nil, err
	}
	if same {
		return p.take(e, false)
	}
	action, _ := p.policy.For(e.path)
	if action != MergeLines || e.local.Mode&unix.S_IFMT != e.image.Mode&unix.S_IFMT {
		return p.settle(e, kind, ImageChanged)
	}
	n := of(e.name, e.local, true)
	if attrs {
		n.attrs, n.attrsLocal = e.image, false
	}
	switch {
	case body:
		n.st, n.local = e.image, false
	case !imageBody:
		return p.mergeLines(e, kind, !attrs)
	}
	if !attrs && !imageAttrs {
		if same, err = sameAttributes(e.l, e.i, e.name, e.local, e.image); err != nil {
			return nil, err
		}
		if !same {
			p.note(e.path, kind, ImageChanged, Merged, "owner, mode or extended attributes were changed on both sides: the machine's stay")
			return n, nil
		}
	}
	p.note(e.path, kind, ImageChanged, Merged)
	return n, nil
}

// mergeLines decides a file whose contents both sides changed, or made.
// attrsLocal says whose attributes it gets if it can be merged.
func (p *planner) mergeLines(e entry, kind Kind, attrsLocal bool) (*node, error) {
	format := lines.For(e.path)
	action, _ := p.policy.For(e.path)
	if format == nil || action != MergeLines || !isRegular(e.local) || !isRegular(e.image) || e.base != nil && !isRegular(e.base) {
		return p.settle(e, kind, ImageChanged)
	}
	var base []byte
	local, err := readFile(e.l, e.name, lines.MaxSize)
	if err == nil && e.base != nil {
		base, err = readFile(e.b, e.name, lines.MaxSize)
	}
	var image []byte
	if err == nil {
		image, err = readFile(e.i, e.name, lines.MaxSize)
	}
	if errors.Is(err, errTooLarge) {
		return p.settle(e, kind, ImageChanged, "not merged: "+err.Error())
	}
	if err != nil {
		return nil, err
	}
	merged, conflicts, err := format.Merge(base, local, image)
	if err != nil {
		return p.settle(e, kind, ImageChanged, "not merged: "+err.Error())
	}
	var notes []string
	for _, c := range conflicts {
		notes = append(notes, c.String())
	}
	p.note(e.path, kind, ImageChanged, Merged, notes...)
	n := of(e.name, e.local, true)
	if !attrsLocal {
		n.attrs, n.attrsLocal = e.image, false
	}
	if !bytes.Equal(merged, local) {
		n.merged = merged
	}
	return n, nil
}

// Lines returns the entries in which a file of lines was changed locally; none
// for other files, and where an entry is not understood.
func Lines(base, local source.Dir, c Change) ([]lines.Line, error) {
	format := lines.For(c.Path)
	if format == nil || c.Kind != Modified && c.Kind != Added {
		return nil, nil
	}
	var texts [2][]byte
	for i, d := range []source.Dir{base, local} {
		st, err := lstat(d, c.Path)
		if err == nil && isRegular(st) {
			texts[i], err = readFile(d, c.Path, lines.MaxSize)
		}
		if errors.Is(err, errTooLarge) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	diff, err := format.Diff(texts[0], texts[1])
	if err != nil {
		return nil, nil //nolint:nilerr // such a file is compared as a whole
	}
	return diff, nil
}
