package lines

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
)

// FuzzMerge holds every format to what a merge promises.
func FuzzMerge(f *testing.F) {
	f.Add(uint8(0), text(root), text(root, ann), text(root, svc))
	f.Add(uint8(0), text(root, svc), text(svc, root), text(root))
	f.Add(uint8(1), text("g:x:1:a"), text("g:x:1:a,b"), text("g:x:1:c"))
	f.Add(uint8(1), "", text("g:x:1:a,b"), text("h:x:1:c", "g:x:2:"))
	f.Add(uint8(2), text("r:*:1::::::"), text("r:x:1::::::"), text("r:*:2::::::", "s:*:1::::::"))
	f.Add(uint8(3), text("g:!::a"), text("g:!:b:a"), text("g:!:c:"))
	f.Add(uint8(4), "", text("a:1:10"), text("b:5:10", "b:11:4"))
	f.Add(uint8(6), text("# c", "a / ext4"), text("a / ext4 ro", "x none swap"), text("b / ext4", "c /c xfs defaults 0 2"))
	names := slices.Sorted(maps.Keys(formats))
	f.Fuzz(func(t *testing.T, which uint8, base, local, image string) {
		name := names[int(which)%len(names)]
		format := For(name)
		merge := func(base, local, image string) string {
			out, _, err := format.Merge([]byte(base), []byte(local), []byte(image))
			if err != nil {
				t.Skip(err)
			}
			return string(out)
		}
		got := merge(base, local, image)
		if s := merge(base, base, image); s != image {
			t.Errorf("%s: without a change on the machine: %q, want the image's %q", name, s, image)
		}
		if s := merge(base, local, base); s != local {
			t.Errorf("%s: without a change in the image: %q, want the machine's %q", name, s, local)
		}
		for _, b := range []string{base, image} {
			// What is the base by chance is no change any more.
			if s := merge(b, got, image); s != got && got != b {
				t.Errorf("%s: merged again over %q: %q, was %q", name, b, s, got)
			}
		}
		nothingLost(t, format, base, local, image, got)
	})
}

// nothingLost: what the machine changed or added is there.
func nothingLost(t *testing.T, f *Format, base, local, image, got string) {
	b, errB := f.parse([]byte(base))
	l, errL := f.parse([]byte(local))
	i, errI := f.parse([]byte(image))
	g, errG := f.parse([]byte(got))
	if errB != nil || errL != nil || errI != nil || errG != nil {
		t.Fatalf("%v, %v, %v; merged: %v: %q", errB, errL, errI, errG, got)
	}
	for _, mine := range l.entries {
		if mine.key == "" {
			if local != base && image != base && !bytes.Contains([]byte("\n"+got), []byte("\n"+mine.line+"\n")) && local != got && image != got {
				t.Errorf("the machine's comment %q is lost in %q", mine.line, got)
			}
			continue
		}
		old := b.find(mine.key)
		if old != nil && old.line == mine.line {
			continue
		}
		out := g.find(mine.key)
		if out == nil {
			t.Errorf("the machine's %q is lost in %q", mine.line, got)
			continue
		}
		for n, field := range mine.fields {
			if !slices.Contains(f.sets, n) {
				if out.fields[n] != field {
					t.Errorf("the machine's %q became %q", mine.line, out.line)
				}
				continue
			}
			for _, member := range names(field) {
				gone := old != nil && slices.Contains(names(old.fields[n]), member) && i.find(mine.key) != nil && !slices.Contains(names(i.find(mine.key).fields[n]), member)
				if !gone && !slices.Contains(names(out.fields[n]), member) {
					t.Errorf("%q is no member any more: %q became %q", member, mine.line, out.line)
				}
			}
		}
	}
	if strings.Count(got, "\n") > strings.Count(local+"\n"+image, "\n")+1 {
		t.Errorf("more lines than both have: %q", got)
	}
}
