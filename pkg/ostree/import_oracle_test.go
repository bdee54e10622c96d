package ostree

import (
	"archive/tar"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// baseLayer and the others are images as builders make them: directories are
// listed, and no layer changes one of a layer below.
func baseLayer() []ent {
	return []ent{
		{name: "boot/"},
		{name: "var/"},
		{name: "var/tmp/", mode: 0o1777},
		{name: "var/lib/"},
		{name: "var/lib/data", data: "kept"},
		{name: "run/"},
		{name: "run/secret", data: "dropped"},
		{name: "tmp/", mode: 0o1777},
		{name: "tmp/a/"},
		{name: "tmp/a/b", data: "dropped"},
		{name: "proc/"},
		{name: "sys/"},
		{name: "dev/"},
		{name: "sysroot/"},
		{name: "ostree", link: "sysroot/ostree"},
		{name: "bin", link: "usr/bin"},
		{name: "usr/"},
		{name: "usr/bin/"},
		{name: "usr/bin/tool", mode: 0o755, data: "#!/bin/sh\necho tool\n"},
		{name: "usr/bin/link", hard: "usr/bin/tool"},
		{name: "usr/bin/suid", mode: 0o4755, data: "suid"},
		{name: "usr/bin/sgid", mode: 0o2755, gid: 50, data: "sgid"},
		{name: "usr/bin/symlink", link: "tool"},
		{name: "usr/bin/cap", mode: 0o755, data: "capable", xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		{name: "usr/share/"},
		{name: "usr/share/owned", mode: 0o640, uid: 1000, gid: 1001, data: "owned"},
		{name: "usr/share/empty"},
		{name: "usr/share/gone", data: "to be removed"},
		{name: "usr/share/big", data: strings.Repeat("0123456789abcdef", 100_000)},
		{name: "usr/share/dir/"},
		{name: "usr/share/dir/old", data: "hidden by an opaque directory"},
		{name: "usr/share/becomes-dir", data: "file"},
		{name: "usr/share/becomes-file/"},
		{name: "usr/share/becomes-file/child", data: "child"},
		{name: "usr/nolabel/"},
		{name: "usr/nolabel/file", data: "no label"},
		{name: "etc/"},
		{name: "etc/shadow", mode: 0o000 | 0o400, data: "secret"},
		{name: "etc/hostname"},
		{name: "etc/resolv.conf"},
		{name: "etc/mine", data: "etc"},
		{name: "etc/mine-too", hard: "etc/mine"},
		{name: "etc/old.conf", data: "to be removed"},
		{name: "opt/"},
		{name: "opt/app", data: "top level"},
	}
}

func derivedLayer() []ent {
	return []ent{
		{name: "usr/"},
		{name: "usr/bin/"},
		{name: "usr/bin/tool", mode: 0o755, data: "#!/bin/sh\necho other\n"},
		{name: "usr/bin/new", mode: 0o755, data: "new"},
		{name: "usr/share/"},
		{name: "usr/share/.wh.gone"},
		{name: "usr/share/dir/"},
		{name: "usr/share/dir/.wh..wh..opq"},
		{name: "usr/share/dir/fresh", data: "fresh"},
		{name: "usr/share/.wh.becomes-dir"},
		{name: "usr/share/becomes-dir/"},
		{name: "usr/share/becomes-dir/child", data: "child"},
		{name: "usr/share/.wh.becomes-file"},
		{name: "usr/share/becomes-file", data: "now a file"},
		{name: "etc/"},
		{name: "etc/.wh.old.conf"},
		{name: "etc/new.conf", data: "derived"},
		{name: "etc/shadow", mode: 0o600, data: "other secret"},
		{name: "tmp/", mode: 0o1777},
		{name: "tmp/build", data: "dropped"},
		{name: "var/"},
		{name: "var/lib/"},
		{name: "var/lib/more", data: "kept too"},
	}
}

// ostreeExtImport does with the ostree program what ostree-ext does for a plain
// image (container/store.rs, tar/write.rs): each layer, filtered, becomes a
// commit; they are checked out over each other; what comes of it is committed
// with the labels of its own policy; then each layer again.
func ostreeExtImport(t *testing.T, layers [][]ent) (repo, merge string, layerRevs []string) {
	t.Helper()
	dir := t.TempDir()
	repo = filepath.Join(dir, "repo")
	runTool(t, "ostree", "init", "--repo="+repo, "--mode=bare")
	root := filepath.Join(dir, "root")
	for i, l := range layers {
		file := filepath.Join(dir, "layer.tar")
		if err := os.WriteFile(file, makeTar(t, filtered(l)), 0o600); err != nil {
			t.Fatal(err)
		}
		rev := runTool(t, "ostree", "commit", "--repo="+repo, "--no-bindings", "--tar-autocreate-parents", "--tree=tar="+file, "--branch=layer"+strconv.Itoa(i))
		layerRevs = append(layerRevs, rev)
		runTool(t, "ostree", "checkout", "--repo="+repo, "-H", "--union", "--whiteouts", rev, root)
	}
	for _, name := range []string{"usr/etc/hostname", "usr/etc/resolv.conf"} {
		if st, err := os.Lstat(filepath.Join(root, name)); err == nil && st.Size() == 0 {
			if err := os.Remove(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	commit := func(branch, tree string) string {
		argv := []string{"ostree", "commit", "--repo=" + repo, "--no-bindings", "--tree=dir=" + tree, "--branch=" + branch}
		if _, err := os.Stat(filepath.Join(root, "usr/etc/selinux/config")); err == nil {
			argv = append(argv, "--selinux-policy="+root)
		}
		return runTool(t, argv...)
	}
	merge = commit("merge", root)
	for i, rev := range layerRevs {
		tree := filepath.Join(dir, "relabel"+strconv.Itoa(i))
		runTool(t, "ostree", "checkout", "--repo="+repo, "-H", rev, tree)
		layerRevs[i] = commit("layer"+strconv.Itoa(i), tree)
	}
	return repo, merge, layerRevs
}

// filtered is the filter that ostree-ext puts before ostree commit.
func filtered(layer []ent) []ent {
	var out []ent
	etc := func(name string) string {
		if name == "etc" || strings.HasPrefix(name, "etc/") {
			return "usr/" + name
		}
		return name
	}
	for _, e := range layer {
		top, rest, _ := strings.Cut(e.name, "/")
		if slices.Contains([]string{"run", "tmp", "proc", "sys", "dev"}, top) && rest != "" {
			continue
		}
		e.name, e.hard = etc(e.name), etc(e.hard)
		out = append(out, e)
	}
	return out
}

// TestImportEqualsOstree compares what Import makes of plain images with what
// the ostree program makes of them: the merge commit's tree and the tree of
// every layer commit.
func TestImportEqualsOstree(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	implicit := []ent{{name: "usr/lib/deep/down/file", data: "its parents are not listed"}, {name: "etc/app/app.conf", data: "y"}}
	// libostree 2022.7 does not sort the xattrs that it reads from a disk, so
	// that only a file with one of them can be compared.
	user := []ent{{name: "usr/"}, {name: "usr/user", data: "attributed", xattrs: map[string]string{"user.kedge": "value"}}}
	for name, layers := range map[string][][]ent{
		"plain":             {baseLayer()},
		"policy":            {append(baseLayer(), policyFiles()[1:]...)},
		"derived":           {baseLayer(), derivedLayer()},
		"derived, policy":   {append(baseLayer(), policyFiles()[1:]...), derivedLayer()},
		"policy above":      {baseLayer(), policyFiles(), derivedLayer()},
		"implicit parents":  {implicit, {{name: "usr/lib/deep/second/third/f", uid: 2, gid: 3, data: "z"}, {name: "usr/lib/f"}, {name: "usr/lib/four/f", uid: 5}}},
		"user xattrs":       {user},
		"nothing but a dir": {{{name: "./"}, {name: "usr/"}}},
	} {
		t.Run(name, func(t *testing.T) {
			theirs, merge, revs := ostreeExtImport(t, layers)
			img := newImage(t, layers...)
			r := importRepo(t, Bare)
			commit, _ := img.importInto(t, r, ImportOptions{Version: "1"}, map[string]*fstree.Layer{}, "oci:/x:t")
			runTool(t, "ostree", "fsck", "--repo="+r.Path())
			compareTrees(t, "merge commit", theirs, merge, r.Path(), commit.String())
			for i, data := range img.tars {
				ref := LayerRef(sha(data))
				if !slices.Equal(whiteoutLess(t, theirs, revs[i]), whiteoutLess(t, r.Path(), ref)) {
					compareTrees(t, "layer "+strconv.Itoa(i), theirs, revs[i], r.Path(), ref)
				}
			}
		})
	}
}

// whiteoutLess lists a commit without its whiteout files, whose modes Import
// does not know.
func whiteoutLess(t *testing.T, repo, rev string) []string {
	var out []string
	for line := range strings.SplitSeq(runTool(t, "ostree", "ls", "--repo="+repo, "-R", "-X", "-C", rev), "\n") {
		if f := strings.Fields(line); f[0][0] == 'd' { // a directory's dirtree checksum depends on its files
			line = strings.Join(append(f[:4], f[6:]...), " ")
		}
		if !strings.Contains(line, "/.wh.") {
			out = append(out, line)
		}
	}
	return out
}

func compareTrees(t *testing.T, what, repo1, rev1, repo2, rev2 string) {
	t.Helper()
	list := func(repo, rev string) []string {
		return strings.Split(runTool(t, "ostree", "ls", "--repo="+repo, "-R", "-X", "-C", rev), "\n")
	}
	want, got := list(repo1, rev1), list(repo2, rev2)
	if slices.Equal(want, got) {
		return
	}
	t.Errorf("%s: the tree is not the one that ostree makes", what)
	shown := 0
	for _, line := range want {
		if !slices.Contains(got, line) && shown < 20 {
			t.Logf("- %s", line)
			shown++
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) && shown < 40 {
			t.Logf("+ %s", line)
			shown++
		}
	}
}

// TestUnsupportedFiles has what libostree refuses.
func TestUnsupportedFiles(t *testing.T) {
	for name, e := range map[string]ent{
		"device": {name: "usr/dev", typ: tar.TypeChar}, "fifo": {name: "usr/fifo", typ: tar.TypeFifo},
		"name": {name: "usr/\xff"}, "target": {name: "usr/link", link: "\xff"},
	} {
		t.Run(name, func(t *testing.T) {
			r := importRepo(t, Bare)
			im, err := r.NewImport(t.Context(), ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = im.Close() }()
			tree, _, _ := newImage(t, []ent{{name: "usr/"}, e}).take(t, im, map[string]*fstree.Layer{})
			_, err = Prepare(tree, PrepareOptions{Open: im.OpenContent})
			wantKind(t, err, conflict)
		})
	}
}
