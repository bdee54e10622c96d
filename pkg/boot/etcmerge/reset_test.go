package etcmerge_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

func TestReset(t *testing.T) {
	lab.NeedRoot(t)
	for _, c := range []struct {
		name         string
		image, local files
		path         string
		remove       bool
		want         files
		done         string
		kind         fault.Kind
	}{
		{name: "file", image: files{"a": "0600:1", "b": "1"}, local: files{"a": "mine", "b": "mine"}, path: "a", want: files{"a": "0600:1", "b": "mine"}, done: "a"},
		{name: "mode", image: files{"a": "1"}, local: files{"a": "0600:1"}, path: "a", want: files{"a": "1"}, done: "a"},
		{name: "nothing to do", image: files{"a": "1"}, local: files{"a": "1"}, path: "a", want: files{"a": "1"}},
		{name: "symlink", image: files{"l": "->a", "f": "1"}, local: files{"l": "1", "f": "->a"}, path: "l", want: files{"l": "->a", "f": "->a"}, done: "l"},
		{name: "file in the place of a symlink", image: files{"f": "1"}, local: files{"f": "->a", "a": "safe"}, path: "f", want: files{"f": "1", "a": "safe"}, done: "f"},
		{name: "in directories that are gone", image: files{"d/": "0700:", "d/e/f": "1", "d/e/g": "1"}, local: files{}, path: "d/e/f", want: files{"d/": "0700:", "d/e/f": "1"}, done: "d d/e d/e/f"},
		{
			name: "directory", image: files{"d/a": "1", "d/e/b": "1", "d/x": "1"}, local: files{"d/a": "mine", "d/own": "mine", "d/e/": "0700:", "d/x": "->y"}, path: "d",
			want: files{"d/a": "1", "d/own": "mine", "d/e/b": "1", "d/x": "1"}, done: "d/a d/e d/e/b d/x",
		},
		{name: "directory, with what is not the image's", image: files{"d/a": "1"}, local: files{"d/a": "1", "d/own/x": "mine"}, path: "d", remove: true, want: files{"d/a": "1"}, done: "d/own"},
		{name: "not the image's", image: files{}, local: files{"own": "1"}, path: "own", want: files{"own": "1"}, kind: fault.NotFound},
		{name: "not the image's, removed", image: files{}, local: files{"own/x": "1", "o": "1"}, path: "own", remove: true, want: files{"o": "1"}, done: "own"},
		{name: "nowhere", image: files{}, local: files{"a": "1"}, path: "b", remove: true, want: files{"a": "1"}, kind: fault.NotFound},
		{name: "directory in the place of a file", image: files{"a": "1"}, local: files{"a/b": "mine"}, path: "a", want: files{"a/b": "mine"}, kind: fault.Conflict},
		{name: "directory in the place of a file, removed", image: files{"a": "1"}, local: files{"a/b": "mine"}, path: "a", remove: true, want: files{"a": "1"}, done: "a"},
		{name: "file in the place of a directory", image: files{"a/b": "1"}, local: files{"a": "mine"}, path: "a", want: files{"a/b": "1"}, done: "a a/b"},
		{name: "beneath a symlink", image: files{"d/a": "1"}, local: files{"d": "->/tmp"}, path: "d/a", want: files{"d": "->/tmp"}, kind: fault.Conflict},
		{name: "a fifo", image: files{"a": "1"}, local: files{"a": "|"}, path: "a", want: files{"a": "1"}, done: "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc := c.local.make(t)
			r := &etcmerge.Reset{Ctx: context.Background(), Defaults: tree(t, c.image.make(t)), Etc: open(t, etc), Remove: c.remove, Labels: labels{}}
			err := r.Path(c.path)
			if c.kind == 0 {
				must(t, err)
			} else if fault.KindOf(err) != c.kind || fault.HintOf(err) == "" {
				t.Errorf("error = %v, want kind %v with a hint", err, c.kind)
			}
			if diff := cmp.Diff(c.want, read(t, etc)); diff != "" {
				t.Errorf("/etc (- expected, + is):\n%s", diff)
			}
			slices.Sort(r.Done)
			if got := strings.Join(r.Done, " "); got != c.done {
				t.Errorf("changed: %q, want %q", got, c.done)
			}
			for _, name := range r.Done {
				if _, err := os.Lstat(filepath.Join(etc, name)); err != nil {
					continue
				}
				list, err := open(t, filepath.Join(etc, filepath.Dir(name))).Xattrs(filepath.Base(name))
				must(t, err)
				if len(list) != 1 || list[0].Value != "/etc/"+name+"\x00" {
					t.Errorf("the label of %s = %q", name, list)
				}
			}
		})
	}
}
