package fstree

import "iter"

// EntryKind says what a layer entry does to the tree below it.
type EntryKind uint8

// The kinds of layer entries (image-spec, layer.md).
const (
	Add      EntryKind = iota // Inode appears at Path
	Hardlink                  // Path becomes another name of LinkTo
	Whiteout                  // Path of the lower layers disappears
	Opaque                    // the lower layers' children of directory Path disappear
)

// Entry is one entry of a layer. Paths are slash-separated, relative to the
// root, clean, and never contain "." or ".." elements; "" is the root.
type Entry struct {
	Path   string
	LinkTo string // Hardlink only
	Inode  *Inode // Add only; directories are empty
	Kind   EntryKind
}

// Layer is what one OCI layer says, in the order of its archive. It does not
// change, and is kept packed: 50 bytes an entry and the end of its name, where
// entries themselves would take 200.
type Layer struct {
	packed []byte // the entries, as Encoder writes them
	n      int
	marks  int // whiteouts and opaque markers among them
	links  int // hard links
	sets   []*Xattrs
}

// NewLayer returns a layer with these entries.
func NewLayer(entries ...Entry) *Layer {
	var b LayerBuilder
	for i := range entries {
		b.Add(entries[i])
	}
	return b.Layer()
}

// LayerBuilder makes a layer.
type LayerBuilder struct {
	enc   Encoder
	layer Layer
}

// Add appends an entry. What it refers to can be changed afterwards.
func (b *LayerBuilder) Add(e Entry) {
	b.enc.entry(&e)
	b.layer.count(e.Kind)
}

// Len returns the number of entries.
func (b *LayerBuilder) Len() int { return b.layer.n }

// Last returns the path of the last entry, or "".
func (b *LayerBuilder) Last() string { return b.enc.last }

// Layer returns the layer. The builder is not used any more.
func (b *LayerBuilder) Layer() *Layer {
	l := b.layer
	l.packed, l.sets = b.enc.B, b.enc.table
	return &l
}

func (l *Layer) count(k EntryKind) {
	l.n++
	switch k {
	case Whiteout, Opaque:
		l.marks++
	case Hardlink:
		l.links++
	}
}

// Len returns the number of entries.
func (l *Layer) Len() int { return l.n }

// HasLinks reports whether an entry is a hard link.
func (l *Layer) HasLinks() bool { return l.links > 0 }

// All returns the entries in order. Their inodes are made anew for whoever asks
// and belong to him.
func (l *Layer) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		d := Decoder{b: l.packed, sets: l.sets}
		for range l.n {
			if e := d.entry(); d.err != nil || !yield(e) {
				return
			}
		}
	}
}

func (d *Decoder) entry() Entry {
	e := Entry{Kind: EntryKind(d.Uint(uint64(Opaque)))}
	d.path()
	e.Path = string(d.last)
	switch e.Kind {
	case Add:
		e.Inode = d.Inode()
	case Hardlink:
		e.LinkTo = d.String()
	}
	return e
}

// PackedLen returns about how many bytes Encoder.Layer needs.
func (l *Layer) PackedLen() int {
	n := len(l.packed) + 16
	for _, x := range l.sets {
		for _, a := range x.All() {
			n += len(a.Name) + len(a.Value) + 8
		}
	}
	return n
}

// Layer appends a layer: the table of its xattr sets, the number of its
// entries, and these.
func (e *Encoder) Layer(l *Layer) {
	e.sets(l.sets)
	e.Uint(uint64(l.n))
	e.B = append(e.B, l.packed...)
}

// Layer reads a layer, which shares memory with what is decoded.
func (d *Decoder) Layer() *Layer {
	d.Sets(New())
	l := &Layer{sets: d.sets}
	d.last = d.last[:0]
	count := d.Count(3) // kind, shared length, rest length
	packed := d.b
	var scratch Inode
	for range count {
		k := EntryKind(d.Uint(uint64(Opaque)))
		d.path()
		switch k {
		case Add:
			scratch = Inode{}
			d.inode(&scratch)
		case Hardlink:
			d.Bytes()
		}
		if d.err == nil && !cleanPath(d.last) {
			d.Fail("the path %q is not clean", d.last)
		}
		if d.err != nil {
			return nil
		}
		l.count(k)
	}
	l.packed = packed[:len(packed)-len(d.b)]
	return l
}
