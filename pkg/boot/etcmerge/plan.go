package etcmerge

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/boot/source"
)

type planner struct {
	ctx     context.Context
	policy  Policy
	changes []Change
}

// maxDepth bounds how deep directories are nested: three descriptors are open at
// each level.
const maxDepth = 256

// entry is one name on the three sides; what a side does not have is nil.
type entry struct {
	path, name         string
	depth              int
	base, local, image *unix.Stat_t
	b, l, i            source.Dir // the directories that hold it
}

// dir merges one directory. A side that is nil has no such directory. changed
// says whether anything in it was changed locally.
func (p *planner) dir(prefix string, depth int, b, l, i source.Dir) (nodes []*node, changed bool, err error) {
	if depth > maxDepth {
		return nil, false, tooDeep(prefix)
	}
	names, err := union(b, l, i)
	if err != nil {
		return nil, false, err
	}
	for _, name := range names {
		if err := p.ctx.Err(); err != nil {
			return nil, false, err
		}
		e := entry{path: prefix + name, name: name, depth: depth, b: b, l: l, i: i}
		if e.base, err = lstat(b, name); err != nil {
			return nil, false, err
		}
		if e.local, err = lstat(l, name); err != nil {
			return nil, false, err
		}
		if e.image, err = lstat(i, name); err != nil {
			return nil, false, err
		}
		before := len(p.changes)
		n, err := p.entry(e)
		if err != nil {
			return nil, false, err
		}
		if n != nil {
			nodes = append(nodes, n)
		}
		changed = changed || len(p.changes) > before
	}
	return nodes, changed, nil
}

func (p *planner) note(path string, k Kind, s ImageSide, o Outcome, notes ...string) {
	p.changes = append(p.changes, Change{Path: path, Kind: k, Image: s, Outcome: o, Notes: notes})
}

// settle notes a change that is not merged, and returns what is in the new /etc:
// the machine's version, unless a rule says otherwise.
func (p *planner) settle(e entry, k Kind, s ImageSide, notes ...string) (*node, error) {
	action, ruled := p.policy.For(e.path)
	switch {
	case action == Fail && s != ImageSame:
		p.note(e.path, k, s, Refused)
		return p.take(e, true)
	case action == TakeImage && !isDir(e.local) && (e.base != nil || e.image != nil):
		p.note(e.path, k, s, Taken)
		return p.take(e, false)
	case s == ImageType && action != KeepLocal:
		p.note(e.path, k, s, Refused)
		return p.take(e, true)
	case action == MergeLines && ruled && s == ImageChanged && len(notes) == 0:
		notes = []string{"not merged: how its lines are to be read is not known"}
	}
	p.note(e.path, k, s, Kept, notes...)
	return p.take(e, true)
}

// What is of the machine whatever the images have: its identity, by which
// systemd also tells a first boot (machine-id(5)), and the stamp that says that
// what runs once after an update has run, which no new root gets
// (ConditionNeedsUpdate=).
const (
	machineID    = "machine-id"
	updatedStamp = ".updated"
)

// entry decides one name; nil means that the new /etc does not have it.
func (p *planner) entry(e entry) (*node, error) {
	switch {
	case e.path == updatedStamp:
		return nil, nil
	case e.path == machineID && e.base == nil && isRegular(e.local):
		p.note(e.path, Added, ImageSame, Kept)
		return p.take(e, true)
	case e.path == machineID && isRegular(e.local) && isRegular(e.base):
		same, err := sameBody(e.b, e.l, e.name, e.base, e.local)
		switch {
		case err != nil:
			return nil, err
		case same:
			return p.take(e, false)
		}
		p.note(e.path, Modified, ImageSame, Kept)
		return p.take(e, true)
	case e.local != nil && !isPlain(e.local):
		p.note(e.path, Ignored, ImageSame, Kept)
		return p.take(e, false)
	case e.l == nil, e.base == nil && e.local == nil:
		return p.take(e, false)
	case e.local == nil:
		side, err := e.imageSide()
		if err != nil {
			return nil, err
		}
		return p.settle(e, Removed, side)
	case isDir(e.local) && (e.base == nil || isDir(e.base) || isDir(e.image)):
		return p.subdir(e)
	case e.base == nil:
		return p.added(e)
	}
	return p.modified(e)
}

// added decides a local file that the old image did not have.
func (p *planner) added(e entry) (*node, error) {
	switch {
	case e.image == nil:
		return p.settle(e, Added, ImageSame)
	case isDir(e.image):
		return p.settle(e, Added, ImageType)
	}
	same, err := sameEntry(e.l, e.i, e.name, e.local, e.image)
	if err != nil {
		return nil, err
	}
	if same {
		return p.take(e, false)
	}
	return p.mergeLines(e, Added, true)
}

// modified decides what both the old image and the machine have, unless both
// are directories.
func (p *planner) modified(e entry) (*node, error) {
	body, err := sameBody(e.b, e.l, e.name, e.base, e.local)
	if err != nil {
		return nil, err
	}
	attrs, err := sameAttributes(e.b, e.l, e.name, e.base, e.local)
	kind := Modified
	switch {
	case err != nil:
		return nil, err
	case body && attrs:
		return p.take(e, false)
	case body:
		kind = Attributes
	}
	switch {
	case e.image == nil:
		return p.settle(e, kind, ImageRemoved)
	case isDir(e.image) && !isDir(e.base):
		return p.settle(e, kind, ImageType)
	case isDir(e.image):
		return p.settle(e, kind, ImageSame)
	}
	return p.combine(e, kind, body, attrs)
}

// subdir merges a directory that is one locally and was one, or nothing, in
// the old image, or is one again in the new image.
func (p *planner) subdir(e entry) (*node, error) {
	if e.image != nil && !isDir(e.image) {
		return p.dirAgainstFile(e)
	}
	b, l, i, done, err := e.open()
	if err != nil {
		return nil, err
	}
	defer done()

	n := of(e.name, e.image, false)
	at := len(p.changes)
	attrs := false
	switch {
	case !isDir(e.base):
		n, attrs = of(e.name, e.local, true), e.image == nil
	case !sameMeta(e.base, e.local):
		n, attrs = of(e.name, e.local, true), true
	default:
		if attrs, err = xattrsDiffer(e.b, e.l, e.name); err != nil {
			return nil, err
		}
		if attrs {
			n = of(e.name, e.local, true)
		}
	}
	if action, _ := p.policy.For(e.path); attrs && action == TakeImage && e.image != nil {
		p.note(e.path, Attributes, ImageSame, Taken)
		n, attrs = of(e.name, e.image, false), false
	}
	if attrs {
		kind, side := Attributes, ImageSame
		if !isDir(e.base) {
			kind = Added
		} else if e.image == nil {
			side = ImageRemoved
		} else if !sameMeta(e.base, e.image) && !sameMeta(e.local, e.image) {
			side = ImageChanged
		}
		p.note(e.path, kind, side, Kept)
	}
	changed := false
	if n.children, changed, err = p.dir(e.path+"/", e.depth+1, b, l, i); err != nil {
		return nil, err
	}
	if e.image == nil {
		// The image dropped it: it stays only for the sake of local changes.
		if e.base != nil && !changed {
			p.changes = p.changes[:at]
			return nil, nil
		}
		children := n.children
		n = of(e.name, e.local, true)
		n.children = children
	}
	return n, nil
}

// dirAgainstFile decides a local directory where the new image has a file.
func (p *planner) dirAgainstFile(e entry) (*node, error) {
	if e.base == nil {
		return p.settle(e, Added, ImageChanged)
	}
	b, l, _, done, err := e.open()
	if err != nil {
		return nil, err
	}
	defer done()
	at := len(p.changes)
	_, changed, err := p.dir(e.path+"/", e.depth+1, b, l, nil)
	if err != nil {
		return nil, err
	}
	p.changes = p.changes[:at]
	if !changed {
		return p.take(e, false)
	}
	return p.settle(e, Modified, ImageType)
}

// take returns the entry with everything below it as one side has it.
func (p *planner) take(e entry, local bool) (*node, error) {
	st, dir := e.image, e.i
	if local {
		st, dir = e.local, e.l
	}
	if st == nil || !isPlain(st) {
		return nil, nil
	}
	n := of(e.name, st, local)
	if !n.isDir() {
		return n, nil
	}
	if e.depth > maxDepth {
		return nil, tooDeep(e.path)
	}
	sub, err := dir.Sub(e.name)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	names, err := sub.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := p.ctx.Err(); err != nil {
			return nil, err
		}
		child := entry{path: e.path + "/" + name, name: name, depth: e.depth + 1}
		st, err := sub.Lstat(name)
		if err != nil {
			return nil, err
		}
		if local {
			child.l, child.local = sub, st
			if !isPlain(st) {
				p.note(child.path, Ignored, ImageSame, Kept)
			}
		} else {
			child.i, child.image = sub, st
		}
		c, err := p.take(child, local)
		if err != nil {
			return nil, err
		}
		if c != nil {
			n.children = append(n.children, c)
		}
	}
	return n, nil
}

// imageSide says what the new image did to an entry of the old one.
func (e *entry) imageSide() (ImageSide, error) {
	if e.image == nil {
		return ImageRemoved, nil
	}
	if isDir(e.base) && isDir(e.image) {
		return ImageSame, nil
	}
	same, err := sameEntry(e.b, e.i, e.name, e.base, e.image)
	if err != nil || same {
		return ImageSame, err
	}
	return ImageChanged, nil
}

// open opens the entry as a directory on the sides that have it as one.
func (e *entry) open() (b, l, i source.Dir, done func(), err error) {
	var opened []source.Dir
	done = func() {
		for _, d := range opened {
			_ = d.Close()
		}
	}
	sub := func(parent source.Dir, st *unix.Stat_t) source.Dir {
		if err != nil || !isDir(st) {
			return nil
		}
		var d source.Dir
		if d, err = parent.Sub(e.name); err != nil {
			return nil
		}
		opened = append(opened, d)
		return d
	}
	b, l, i = sub(e.b, e.base), sub(e.l, e.local), sub(e.i, e.image)
	if err != nil {
		done()
		return nil, nil, nil, nil, err
	}
	return b, l, i, done, nil
}

func union(dirs ...source.Dir) ([]string, error) {
	var all []string
	for _, d := range dirs {
		if d == nil {
			continue
		}
		names, err := d.Names()
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func lstat(d source.Dir, name string) (*unix.Stat_t, error) {
	if d == nil {
		return nil, nil
	}
	st, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return st, err
}
