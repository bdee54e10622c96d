package lines

// Line is an entry in which two versions of a file differ.
type Line struct {
	Key    string
	Change string // added, modified or removed
}

// Diff returns the entries in which local differs from base, in the order of
// local, what is gone last. An error says why they are not known.
func (f *Format) Diff(base, local []byte) ([]Line, error) {
	b, err := f.parse(base)
	if err != nil {
		return nil, err
	}
	l, err := f.parse(local)
	if err != nil {
		return nil, err
	}
	var out []Line
	for _, e := range l.entries {
		switch old := b.find(e.key); {
		case e.key == "":
		case old == nil:
			out = append(out, Line{e.key, "added"})
		case old.line != e.line:
			out = append(out, Line{e.key, "modified"})
		}
	}
	for _, e := range b.entries {
		if e.key != "" && l.find(e.key) == nil {
			out = append(out, Line{e.key, "removed"})
		}
	}
	return out, nil
}
