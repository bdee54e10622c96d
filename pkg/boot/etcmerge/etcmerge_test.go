package etcmerge_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/composefs"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// files is a directory as path → content: a "/" at the end of the path makes a
// directory, "->" at the start of the content a symlink; "0600:" before the
// content gives the mode.
type files map[string]string

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f files) make(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range f {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		mode := fs.FileMode(0)
		if m, rest, ok := strings.Cut(content, ":"); ok && len(m) == 4 {
			if _, err := fmt.Sscanf(m, "%o", &mode); err == nil {
				content = rest
			}
		}
		switch {
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
		case content == "|":
			must(t, syscall.Mkfifo(p, 0o644))
		case strings.HasPrefix(content, "->"):
			must(t, os.Symlink(content[2:], p))
		default:
			must(t, os.WriteFile(p, []byte(content), 0o644))
		}
		if mode != 0 {
			must(t, os.Chmod(p, mode))
		}
	}
	return dir
}

// read is the reverse of make; modes other than the usual are shown.
func read(t testing.TB, dir string) files {
	t.Helper()
	out := files{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		text, usual := "", fs.FileMode(0o644)
		switch {
		case e.IsDir():
			name, usual = name+"/", 0o755
		case st.Mode().Type() == fs.ModeSymlink:
			target, _ := os.Readlink(p)
			out[name] = "->" + target
			return nil
		case st.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text = string(b)
		default:
			text = "|"
		}
		if st.Mode().Perm() != usual {
			text = fmt.Sprintf("%04o:%s", st.Mode().Perm(), text)
		}
		out[name] = text
		return nil
	}))
	// Directories with something in them go without saying.
	for name := range out {
		for other := range out {
			if strings.HasSuffix(name, "/") && out[name] == "" && other != name && strings.HasPrefix(other, name) {
				delete(out, name)
				break
			}
		}
	}
	return out
}

func open(t testing.TB, path string) *dirfd.Dir {
	t.Helper()
	d, err := dirfd.OpenPath(path)
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func tree(t testing.TB, path string) source.Dir { return source.Disk(open(t, path)) }

// imageTree is a directory as an image has it: metadata, and files to open.
func imageTree(t testing.TB, path string) source.Dir {
	t.Helper()
	root, err := os.OpenRoot(path)
	must(t, err)
	defer root.Close()
	tree, err := composefs.NewMeter(composefs.SHA512).ReadDir(context.Background(), root)
	must(t, err)
	paths := map[*fstree.Inode]string{}
	must(t, tree.Walk(func(below string, n *fstree.Inode) error {
		paths[n] = filepath.Join(path, below)
		return nil
	}))
	image := source.NewImage(context.Background(), tree, func(_ context.Context, n *fstree.Inode) (io.ReadCloser, error) {
		return os.Open(paths[n])
	})
	dir, err := image.Dir(".")
	must(t, err)
	return dir
}

// rule is a rule of a policy.
func rule(policy string, match ...string) string {
	return fmt.Sprintf("[[path]]\nmatch = [\"%s\"]\npolicy = %q\n", strings.Join(match, `", "`), policy)
}

func TestMerge(t *testing.T) {
	lab.NeedRoot(t)
	for _, c := range []struct {
		name               string
		base, local, image files
		want               files
		rules              string
		changes            string // "path kind image" a line, and what becomes of it: the notes
		refused            bool
	}{
		{
			name: "no change", base: files{"a": "1", "d/b": "2"}, local: files{"a": "1", "d/b": "2"}, image: files{"a": "new", "d/c": "3"},
			want: files{"a": "new", "d/c": "3"},
		},
		{
			name: "edited, the image too", base: files{"a": "1"}, local: files{"a": "mine"}, image: files{"a": "2"},
			want: files{"a": "mine"}, changes: "a modified changed",
		},
		{
			name: "edited, the image not", base: files{"a": "1", "b": "1"}, local: files{"a": "mine", "b": "1"}, image: files{"a": "1", "b": "2"},
			want: files{"a": "mine", "b": "2"}, changes: "a modified unchanged",
		},
		{
			name: "edited, dropped by the image", base: files{"d/a": "1", "d/b": "1"}, local: files{"d/a": "mine", "d/b": "1"}, image: files{"x": ""},
			want: files{"d/a": "mine", "x": ""}, changes: "d/a modified removed",
		},
		{
			name: "added", base: files{}, local: files{"a": "1", "d/e/f": "2", "g/": "", "l": "->/x"}, image: files{"d/e/z": "3"},
			want: files{"a": "1", "d/e/f": "2", "d/e/z": "3", "g/": "", "l": "->/x"}, changes: "a added unchanged\nd/e/f added unchanged\ng added unchanged\nl added unchanged",
		},
		{
			name: "added on both sides", base: files{}, local: files{"a": "mine", "same": "s"}, image: files{"a": "theirs", "same": "s"},
			want: files{"a": "mine", "same": "s"}, changes: "a added changed",
		},
		{
			name: "removed", base: files{"a": "1", "d/b": "1", "e": "1", "f": "1"}, local: files{}, image: files{"a": "1", "d/b": "2", "f": "2"},
			want: files{}, changes: "a removed unchanged\nd removed unchanged\ne removed removed\nf removed changed",
		},
		{
			name: "mode of a file", base: files{"a": "1"}, local: files{"a": "0600:1"}, image: files{"a": "2"},
			want: files{"a": "0600:2"}, changes: "a attributes changed merged",
		},
		{
			name: "mode of a directory", base: files{"d/a": "1"}, local: files{"d/a": "1", "d/": "0700:"}, image: files{"d/a": "2"},
			want: files{"d/": "0700:", "d/a": "2"}, changes: "d attributes unchanged",
		},
		{
			name: "the image's mode of a directory with local changes", base: files{"d/a": "1"}, local: files{"d/a": "1", "d/b": ""}, image: files{"d/a": "2", "d/": "0700:"},
			want: files{"d/": "0700:", "d/a": "2", "d/b": ""}, changes: "d/b added unchanged",
		},
		{
			name: "symlink", base: files{"l": "->a", "m": "->a"}, local: files{"l": "->b", "m": "->a"}, image: files{"l": "->c", "m": "->c"},
			want: files{"l": "->b", "m": "->c"}, changes: "l modified changed",
		},
		{
			name: "file to symlink", base: files{"a": "1"}, local: files{"a": "->b"}, image: files{"a": "1"},
			want: files{"a": "->b"}, changes: "a modified unchanged",
		},
		{
			name: "local directory in the place of the image's file", base: files{"a": "1"}, local: files{"a/b": "1"}, image: files{"a": "1"},
			want: files{"a/b": "1"}, changes: "a modified unchanged",
		},
		{
			name: "directory replaced by a symlink", base: files{"d/a": "1"}, local: files{"d": "->/srv"}, image: files{"d/a": "2"},
			want: files{"d": "->/srv"}, changes: "d modified unchanged",
		},
		{
			name: "the image's file becomes a directory, untouched", base: files{"a": "1"}, local: files{"a": "1"}, image: files{"a/b": "2"},
			want: files{"a/b": "2"},
		},
		{
			name: "the image's directory becomes a file, untouched", base: files{"a/b": "1"}, local: files{"a/b": "1"}, image: files{"a": "2"},
			want: files{"a": "2"},
		},
		{
			name: "edited file against a new directory", base: files{"a": "1"}, local: files{"a": "mine"}, image: files{"a/b": "2"},
			changes: "a modified type conflict refused", refused: true,
		},
		{
			name: "added file against a new directory", base: files{}, local: files{"a": "mine"}, image: files{"a/b": "2"},
			changes: "a added type conflict refused", refused: true,
		},
		{
			name: "edits in a directory that becomes a file", base: files{"a/b": "1"}, local: files{"a/b": "mine"}, image: files{"a": "2"},
			changes: "a modified type conflict refused", refused: true,
		},
		{
			name: "both make it a directory", base: files{"a": "1"}, local: files{"a/mine": "1"}, image: files{"a/theirs": "2"},
			want: files{"a/mine": "1", "a/theirs": "2"}, changes: "a/mine added unchanged",
		},
		{
			name: "sockets and fifos", base: files{"x": "1"}, local: files{"x": "1", "p": "|", "d/q": "|", "d/r": "1"}, image: files{"x": "1"},
			want: files{"x": "1", "d/r": "1"}, changes: "d added unchanged\nd/q ignored unchanged\nd/r added unchanged\np ignored unchanged",
		},
		{
			name: "contents here, mode there", base: files{"a": "1"}, local: files{"a": "mine"}, image: files{"a": "0600:1"},
			want: files{"a": "0600:mine"}, changes: "a modified changed merged",
		},
		{
			name: "mode on both sides", base: files{"a": "1"}, local: files{"a": "0600:1"}, image: files{"a": "0640:2"},
			want: files{"a": "0600:2"}, changes: "a attributes changed merged: owner, mode or extended attributes were changed on both sides: the machine's stay",
		},
		{
			name: "mode here, a symlink there", base: files{"a": "1"}, local: files{"a": "0600:1"}, image: files{"a": "->b"},
			want: files{"a": "0600:1"}, changes: "a attributes changed",
		},
		{
			name: "the same on both sides", base: files{"a": "1", "l": "->a"}, local: files{"a": "2", "l": "->b"}, image: files{"a": "2", "l": "->b"},
			want: files{"a": "2", "l": "->b"},
		},
		{
			name: "users on both sides", base: files{"passwd": "r:x:0:0::/:/s\n"}, local: files{"passwd": "0600:r:x:0:0::/:/s\nann:x:7:7::/:/s\n"}, image: files{"passwd": "r:x:0:0::/:/s\nsvc:x:8:8::/:/s\n"},
			want: files{"passwd": "0600:r:x:0:0::/:/s\nsvc:x:8:8::/:/s\nann:x:7:7::/:/s\n"}, changes: "passwd modified changed merged",
		},
		{
			name: "users of NIS", base: files{"passwd": "r:x:0:0::/:/s\n"}, local: files{"passwd": "r:x:0:0::/:/s\n+::::::\n"}, image: files{"passwd": ""},
			want: files{"passwd": "r:x:0:0::/:/s\n+::::::\n"}, changes: "passwd modified changed: not merged: the machine's: line 2: an entry of NIS",
		},
		{
			name: "a group that both add, the image's mode", base: files{}, local: files{"group": "g:x:7:ann\n"}, image: files{"group": "0600:g:x:7:svc\nh:x:8:\n"},
			want: files{"group": "g:x:7:ann,svc\nh:x:8:\n"}, changes: "group added changed merged",
		},
		{
			name: "two gids", base: files{}, local: files{"group": "g:x:7:\n"}, image: files{"group": "g:x:8:\n"},
			want: files{"group": "g:x:7:\n"}, changes: `group added changed merged: g: the machine has "g:x:7:", the image "g:x:8:"; the machine's stays`,
		},
		{
			name: "passwd is a symlink here", base: files{"passwd": "1"}, local: files{"passwd": "->x"}, image: files{"passwd": "2"},
			want: files{"passwd": "->x"}, changes: "passwd modified changed",
		},
		{
			name: "take-image", rules: rule("take-image", "t/**"),
			base:  files{"t/a": "1", "t/b": "1", "t/gone": "1", "t/c": "1", "a": "1"},
			local: files{"t/a": "mine", "t/b": "0600:1", "t/c": "mine", "t/own": "mine", "a": "mine"}, image: files{"t/a": "2", "t/b": "1", "t/gone": "2", "t/new/f": "", "a": "1"},
			want:    files{"t/a": "2", "t/b": "1", "t/gone": "2", "t/new/f": "", "t/own": "mine", "a": "mine"},
			changes: "a modified unchanged\nt/a modified changed taken\nt/b attributes unchanged taken\nt/c modified removed taken\nt/gone removed changed taken\nt/own added unchanged",
		},
		{
			name: "take-image against a directory", rules: rule("take-image", "/etc/a"), base: files{"a": "1"}, local: files{"a": "mine"}, image: files{"a/b": "2"},
			want: files{"a/b": "2"}, changes: "a modified type conflict taken",
		},
		{
			name: "keep-local", rules: rule("keep-local", "passwd", "a", "d"),
			base:  files{"passwd": "r:x:0:0::/:/s\n", "a": "1", "d/f": "1"},
			local: files{"passwd": "ann:x:7:7::/:/s\n", "a": "mine", "d/f": "0600:1"}, image: files{"passwd": "svc:x:8:8::/:/s\n", "a/b": "2", "d/f": "2"},
			want:    files{"passwd": "ann:x:7:7::/:/s\n", "a": "mine", "d/f": "0600:1"},
			changes: "a modified type conflict\nd/f attributes changed\npasswd modified changed",
		},
		{
			name: "fail", rules: rule("fail", "*"), base: files{"a": "1", "b": "1"}, local: files{"a": "mine", "b": "mine"}, image: files{"a": "1", "b": "2"},
			changes: "a modified unchanged\nb modified changed refused", refused: true,
		},
		{
			name: "merge of what cannot be", rules: rule("merge", "a"), base: files{"a": "1"}, local: files{"a": "mine"}, image: files{"a": "2"},
			want: files{"a": "mine"}, changes: "a modified changed: not merged: how its lines are to be read is not known",
		},
		{
			name: "the last rule counts", rules: rule("fail", "**") + rule("merge", "x/*/z"), base: files{"x/y/z": "1"}, local: files{"x/y/z": "0600:1"}, image: files{"x/y/z": "2"},
			want: files{"x/y/z": "0600:2"}, changes: "x/y/z attributes changed merged",
		},
		{
			name: "the machine's identity", rules: rule("take-image", "**"), base: files{"machine-id": "uninitialized\n"}, local: files{"machine-id": "0123\n"}, image: files{"machine-id": ""},
			want: files{"machine-id": "0123\n"}, changes: "machine-id modified unchanged",
		},
		{
			name: "an identity that the image did not leave room for", base: files{}, local: files{"machine-id": "0123\n"}, image: files{"machine-id": "uninitialized\n"},
			want: files{"machine-id": "0123\n"}, changes: "machine-id added unchanged",
		},
		{
			name: "no identity yet", base: files{"machine-id": ""}, local: files{"machine-id": ""}, image: files{"machine-id": "uninitialized\n"},
			want: files{"machine-id": "uninitialized\n"},
		},
		{
			name: "the stamp of an update", base: files{"d/.updated": "1"}, local: files{".updated": "TIMESTAMP_NSEC=1\n", "d/.updated": "mine"}, image: files{"d/.updated": "1"},
			want: files{"d/.updated": "mine"}, changes: "d/.updated modified unchanged",
		},
		{
			name: "dropped directory with an attribute changed", base: files{"d/a": "1"}, local: files{"d/a": "1", "d/": "0700:"}, image: files{"x": ""},
			want: files{"x": ""},
		},
	} {
		for kind, defaults := range map[string]func(testing.TB, string) source.Dir{"disk": tree, "image": imageTree} {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				base, local, image := defaults(t, c.base.make(t)), tree(t, c.local.make(t)), defaults(t, c.image.make(t))
				policy, err := etcmerge.ReadPolicy(tree(t, files{etcmerge.ImageRules + "/test.toml": c.rules}.make(t)), nil)
				must(t, err)
				m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Base: base, Local: local, Image: image, Policy: policy})
				must(t, err)
				var lines []string
				for _, ch := range m.Changes {
					line := fmt.Sprintf("%s %s %s", ch.Path, ch.Kind, ch.Image)
					if ch.Outcome != etcmerge.Kept {
						line += " " + ch.Outcome.String()
					}
					lines = append(lines, strings.Join(append([]string{line}, ch.Notes...), ": "))
				}
				if got := strings.Join(lines, "\n"); got != c.changes {
					t.Errorf("changes:\n%s\nwant:\n%s", got, c.changes)
				}
				path := t.TempDir()
				dst := open(t, path)
				_, err = m.Write(context.Background(), dst, etcmerge.WriteOptions{})
				if c.refused {
					if fault.KindOf(err) != fault.Conflict || len(read(t, path)) != 0 {
						t.Errorf("write = %v, want a conflict and nothing written", err)
					}
					return
				}
				must(t, err)
				if diff := cmp.Diff(c.want, read(t, path)); diff != "" {
					t.Errorf("new /etc (- expected, + is):\n%s", diff)
				}
				again, err := m.Write(context.Background(), dst, etcmerge.WriteOptions{})
				if err != nil || again != (etcmerge.Stats{}) {
					t.Errorf("a second write did %+v, %v; want nothing", again, err)
				}
			})
		}
	}
}

func TestFirstDeploymentHasTheImagesDefaults(t *testing.T) {
	lab.NeedRoot(t)
	image := files{"a": "0600:1", "d/": "0700:", "d/l": "->a"}
	path := t.TempDir()
	m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Image: tree(t, image.make(t))})
	must(t, err)
	_, err = m.Write(context.Background(), open(t, path), etcmerge.WriteOptions{})
	must(t, err)
	if diff := cmp.Diff(image, read(t, path)); diff != "" || len(m.Changes) != 0 {
		t.Errorf("/etc differs from the image's defaults:\n%s", diff)
	}
}

// TestAttributes: owner, extended attributes and time of a local file go with
// it; a change of extended attributes alone is a change.
func TestAttributes(t *testing.T) {
	lab.NeedRoot(t)
	baseDir, localDir, imageDir := files{"a": "1", "b": "1"}.make(t), files{"a": "1", "b": "1"}.make(t), files{"a": "2", "b": "2"}.make(t)
	must(t, unix.Setxattr(filepath.Join(localDir, "a"), "user.mine", []byte("x"), 0))
	must(t, unix.Setxattr(filepath.Join(imageDir, "b"), "user.image", []byte("y"), 0))
	must(t, os.Chown(filepath.Join(localDir, "a"), 3, 4))
	when := time.Date(2020, 5, 6, 7, 8, 9, 0, time.UTC)
	must(t, os.WriteFile(filepath.Join(localDir, "a"), []byte("3"), 0o644))
	must(t, os.Chtimes(filepath.Join(localDir, "a"), when, when))
	m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Base: tree(t, baseDir), Local: tree(t, localDir), Image: tree(t, imageDir)})
	must(t, err)
	path := t.TempDir()
	_, err = m.Write(context.Background(), open(t, path), etcmerge.WriteOptions{Labels: labels{}})
	must(t, err)
	st, err := os.Stat(filepath.Join(path, "a"))
	must(t, err)
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 3 || sys.Gid != 4 || !st.ModTime().Equal(when) {
		t.Errorf("local file came out as %d:%d %v, want 3:4 %v", sys.Uid, sys.Gid, st.ModTime(), when)
	}
	for name, want := range map[string]string{"a": "user.mine=x", "b": "security.selinux=/etc/b\x00 user.image=y"} {
		list, err := open(t, path).Xattrs(name)
		must(t, err)
		var got []string
		for _, x := range list {
			got = append(got, x.Name+"="+x.Value)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("attributes of %s = %q, want %q", name, got, want)
		}
	}
}

type labels struct{}

func (labels) Label(path string, _ uint32) (string, bool) { return path, true }

// TestSecondWriteCostsTheDifference is what finalisation relies on.
func TestSecondWriteCostsTheDifference(t *testing.T) {
	lab.NeedRoot(t)
	big := strings.Repeat("b", etcmerge.LargeFile+1)
	baseDir, localDir, imageDir := files{"a": "1"}.make(t), files{"a": "mine", "big": big, "gone": "x", "edit": "1"}.make(t), files{"a": "2"}.make(t)
	dst := t.TempDir()
	base, local, image := tree(t, baseDir), tree(t, localDir), tree(t, imageDir)
	write := func(since time.Time) etcmerge.Stats {
		m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Base: base, Local: local, Image: image})
		must(t, err)
		stats, err := m.Write(context.Background(), open(t, dst), etcmerge.WriteOptions{Since: since})
		must(t, err)
		return stats
	}
	write(time.Time{})
	since := time.Now().Add(time.Hour)
	must(t, os.Remove(filepath.Join(localDir, "gone")))
	must(t, os.WriteFile(filepath.Join(localDir, "edit"), []byte("2"), 0o644))
	must(t, os.WriteFile(filepath.Join(localDir, "a"), []byte("1"), 0o644))
	stats := write(since)
	if stats.Files != 2 || stats.Removed != 1 || stats.Largest > 8 {
		t.Errorf("second write = %+v, want the edited and the reverted file and one removal", stats)
	}
	if diff := cmp.Diff(files{"a": "2", "big": big, "edit": "2"}, read(t, dst)); diff != "" {
		t.Errorf("after the second write (- expected, + is):\n%s", diff)
	}
	// A large file that changed after the first write is compared by its bytes
	// even if its size and time are the same.
	changed := strings.Repeat("c", etcmerge.LargeFile+1)
	st, err := os.Stat(filepath.Join(localDir, "big"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(localDir, "big"), []byte(changed), 0o644))
	must(t, os.Chtimes(filepath.Join(localDir, "big"), st.ModTime(), st.ModTime()))
	if stats := write(time.Now().Add(-time.Hour)); stats.Files != 1 {
		t.Errorf("write after a large file changed = %+v, want it written", stats)
	}
}

// TestSymlinkLoops: nothing is followed.
func TestSymlinkLoops(t *testing.T) {
	lab.NeedRoot(t)
	local := files{"loop": "->loop", "up": "->..", "out": "->/etc", "d/self": "->../d"}
	path := t.TempDir()
	m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Base: tree(t, files{}.make(t)), Local: tree(t, local.make(t)), Image: tree(t, files{}.make(t))})
	must(t, err)
	_, err = m.Write(context.Background(), open(t, path), etcmerge.WriteOptions{})
	must(t, err)
	if diff := cmp.Diff(local, read(t, path)); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkMerge17k merges 17,000 files whose defaults are on disk, or those of
// images.
func BenchmarkMerge17k(b *testing.B) {
	lab.NeedRoot(b)
	f := files{}
	for i := range 17000 {
		f[fmt.Sprintf("d%d/e%d/file%d", i%100, i%7, i)] = strings.Repeat("x", 200)
	}
	for kind, defaults := range map[string]func(testing.TB, string) source.Dir{"disk": tree, "image": imageTree} {
		b.Run(kind, func(b *testing.B) {
			base, local, image := defaults(b, f.make(b)), tree(b, f.make(b)), defaults(b, f.make(b))
			for _, run := range []string{"first", "again"} {
				b.Run(run, func(b *testing.B) {
					for b.Loop() {
						dst := open(b, b.TempDir())
						merge := func() etcmerge.Stats {
							m, err := etcmerge.Plan(context.Background(), etcmerge.Sides{Base: base, Local: local, Image: image})
							must(b, err)
							stats, err := m.Write(context.Background(), dst, etcmerge.WriteOptions{})
							must(b, err)
							return stats
						}
						if run == "again" {
							b.StopTimer()
							merge()
							b.StartTimer()
						}
						var before, after unix.Rusage
						must(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
						stats := merge()
						must(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
						cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
						b.ReportMetric(float64(cpu)/1e6, "cpu-ms")
						b.ReportMetric(float64(stats.Files), "written/op")
					}
				})
			}
		})
	}
}
