package composefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// rawXattrs are an inode's xattrs as the image has them. Inodes with the same
// bytes share one.
type rawXattrs struct {
	list     []fstree.Xattr
	plain    *fstree.Xattrs // see plainXattrs
	hasPlain bool
	restored map[string]*fstree.Xattrs // see restored
}

func (x *rawXattrs) get(name string) (string, bool) {
	if x != nil {
		for _, a := range x.list {
			if a.Name == name {
				return a.Value, true
			}
		}
	}
	return "", false
}

// has reports whether all the names are there, with an empty value.
func (x *rawXattrs) has(names ...string) bool {
	for _, name := range names {
		if v, ok := x.get(name); !ok || v != "" {
			return false
		}
	}
	return true
}

// xattrs reads an inode's xattrs: size bytes at off.
func (r *imageReader) xattrs(off, size int64) (*rawXattrs, error) {
	b, err := r.bytes(off, size)
	if err != nil {
		return nil, err
	}
	if x, ok := r.bodies[string(b)]; ok {
		return x, nil
	}
	x := &rawXattrs{}
	shared := int64(b[4])
	inline := xattrHeader + 4*shared
	if inline > size {
		return nil, fmt.Errorf("%d shared xattrs in %d bytes", shared, size)
	}
	add := func(a fstree.Xattr) error {
		if r.xattrBudget -= int64(len(a.Name) + len(a.Value)); r.xattrBudget < 0 {
			return errors.New("too many bytes of shared xattrs")
		}
		x.list = append(x.list, a)
		return nil
	}
	for i := range shared {
		at := r.xattrBase + 4*int64(binary.LittleEndian.Uint32(b[xattrHeader+4*i:]))
		a, ok := r.sharedAt[at]
		if !ok {
			if a, _, err = r.xattrAt(at, int64(len(r.data))); err != nil {
				return nil, fmt.Errorf("shared xattr: %w", err)
			}
			if err := r.charge(int64(len(a.Value))); err != nil {
				return nil, err
			}
			r.sharedAt[at] = a
		}
		if err := add(a); err != nil {
			return nil, err
		}
	}
	for at, end := off+inline, off+size; at < end; {
		a, n, err := r.xattrAt(at, end)
		if err != nil {
			return nil, fmt.Errorf("xattr: %w", err)
		}
		if err := add(a); err != nil {
			return nil, err
		}
		at += n
	}
	r.bodies[string(b)] = x
	return x, nil
}

// xattrAt reads one xattr, which must end before end, and returns its length.
func (r *imageReader) xattrAt(off, end int64) (fstree.Xattr, int64, error) {
	b, err := r.bytes(off, xattrEntry)
	if err != nil {
		return fstree.Xattr{}, 0, err
	}
	nameLen, valueLen := int64(b[0]), int64(binary.LittleEndian.Uint16(b[2:]))
	n := roundUp(xattrEntry+nameLen+valueLen, 4)
	if n > end-off {
		return fstree.Xattr{}, 0, fmt.Errorf("%d bytes where %d are left", n, end-off)
	}
	index := b[1]
	if b, err = r.bytes(off+xattrEntry, nameLen+valueLen); err != nil {
		return fstree.Xattr{}, 0, err
	}
	prefix, err := xattrPrefix(index)
	if err != nil {
		return fstree.Xattr{}, 0, err
	}
	suffix, value := b[:nameLen], string(b[nameLen:])
	name, ok := r.names[index][string(suffix)]
	if ok {
		return fstree.Xattr{Name: name, Value: value}, n, nil
	}
	if name = prefix + string(suffix); name == "" || strings.IndexByte(name, 0) >= 0 {
		return fstree.Xattr{}, 0, fmt.Errorf("name %q", name)
	}
	if r.names[index] == nil {
		r.names[index] = make(map[string]string)
	}
	r.names[index][name[len(prefix):]] = name
	return fstree.Xattr{Name: name, Value: value}, n, nil
}

func xattrPrefix(index uint8) (string, error) {
	switch index {
	case 0:
		return "", nil
	case 5: // composefs-rs's early format
		return "lustre.", nil
	}
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.prefix, nil
		}
	}
	return "", fmt.Errorf("name prefix number %d", index)
}

// plainXattrs returns the xattrs of the tree that the image was made of, but
// for those that whiteouts bring.
func (r *imageReader) plainXattrs(x *rawXattrs) *fstree.Xattrs {
	if x == nil {
		return nil
	}
	if !x.hasPlain {
		x.plain, x.hasPlain = r.without(x), true
	}
	return x.plain
}

// restored is plainXattrs for a whiteout or a directory with whiteouts, without
// the names that this brought, of which the first tells one from the other.
func (r *imageReader) restored(x *rawXattrs, names ...string) *fstree.Xattrs {
	set, ok := x.restored[names[0]]
	if !ok {
		set = r.without(x, names...)
		if x.restored == nil {
			x.restored = make(map[string]*fstree.Xattrs)
		}
		x.restored[names[0]] = set
	}
	return set
}

// without returns the xattrs of x but for overlayfs's own and the given ones,
// escaped names in plain.
func (r *imageReader) without(x *rawXattrs, names ...string) *fstree.Xattrs {
	var list []fstree.Xattr
	for _, a := range x.list {
		if slices.Contains(names, a.Name) {
			continue
		}
		if s, ok := strings.CutPrefix(a.Name, overlayPrefix); ok {
			// overlayfs shows none of its own xattrs, and those that are
			// escaped without the escape.
			if s, ok = strings.CutPrefix(s, "overlay."); !ok {
				continue
			}
			a.Name = overlayPrefix + s
		}
		list = append(list, a)
	}
	return r.tree.intern.Intern(list)
}

// external takes the object's path and digest from an external file's xattrs.
func (x *rawXattrs) external(n *Inode) error {
	if p, ok := x.get(xattrRedirect); ok {
		n.Payload = strings.TrimPrefix(p, "/")
		if strings.IndexByte(p, 0) >= 0 || len(p) > maxPayload+1 {
			return fmt.Errorf("redirect to %q", p)
		}
	}
	v, _ := x.get(xattrMetacopy)
	if v == "" {
		return nil
	}
	if len(v) < 4 || v != metacopy(Digest(v[4:])) {
		return fmt.Errorf("metacopy % x is none", v)
	}
	n.Digest = Digest(v[4:])
	return nil
}
