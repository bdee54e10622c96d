package ostree

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return strings.TrimSpace(out.String())
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sampleTree fills a directory with one of everything that a commit can hold.
func sampleTree(t testing.TB) string {
	t.Helper()
	lab.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "tree")
	write := func(name, content string, perm fs.FileMode) {
		p := filepath.Join(dir, name)
		check(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), perm), os.Chmod(p, perm))
	}
	write("usr/bin/tool", "#!/bin/sh\n", 0o755)
	write("usr/bin/sudo", "suid", fs.ModeSetuid|0o755)
	write("usr/lib/empty", "", 0o644)
	write("usr/lib/same", "", 0o644)
	write("usr/lib/private", "secret", 0o600)
	write("usr/lib/unreadable", "nobody", 0)
	write("usr/lib/big", strings.Repeat("0123456789abcdef", 200_000), 0o644)
	write("usr/lib/zeros", strings.Repeat("\x00", 3<<20)+"end", 0o644)
	write("usr/lib/edge", strings.Repeat("e", copyBuffer), 0o644)
	write("usr/lib/edge-1", strings.Repeat("e", copyBuffer-1), 0o644)
	write("usr/lib/edge+1", strings.Repeat("e", copyBuffer+1), 0o644)
	write("usr/share/ü/naïve file", "utf-8", 0o644)
	write("usr/share/owned", "by 1000", 0o640)
	write("usr/share/xattrs", "with", 0o644)
	for i := range 300 {
		write(fmt.Sprintf("usr/share/many/%03d-%s", i, strings.Repeat("n", i%97)), fmt.Sprint(i%50), 0o644)
	}
	check(t,
		os.Symlink("usr/bin", filepath.Join(dir, "bin")),
		os.Symlink("/nowhere/über", filepath.Join(dir, "dangling")),
		os.Lchown(filepath.Join(dir, "bin"), 5, 6),
		os.Link(filepath.Join(dir, "usr/lib/big"), filepath.Join(dir, "usr/lib/big-again")),
		os.Chown(filepath.Join(dir, "usr/share/owned"), 1000, 1001),
		os.MkdirAll(filepath.Join(dir, "var/empty"), 0o755),
		os.Chmod(filepath.Join(dir, "var/empty"), fs.ModeSticky|0o777),
		os.Chown(filepath.Join(dir, "var/empty"), 7, 8),
		unix.Lsetxattr(filepath.Join(dir, "usr/share/xattrs"), "user.b", []byte("two\x00"), 0),
		unix.Lsetxattr(filepath.Join(dir, "usr/share/xattrs"), "user.a", []byte("one"), 0),
		unix.Lsetxattr(filepath.Join(dir, "usr/share/xattrs"), "user.empty", nil, 0),
		unix.Lsetxattr(filepath.Join(dir, "usr/share"), "user.dir", []byte("d"), 0),
	)
	label := []byte("system_u:object_r:usr_t:s0\x00")
	for _, p := range []string{"usr/bin/tool", "bin", "usr/lib"} {
		check(t, unix.Lsetxattr(filepath.Join(dir, p), "security.selinux", label, 0))
	}
	check(t, unix.Lsetxattr(filepath.Join(dir, "usr/bin/sudo"), "security.capability",
		[]byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	return dir
}

func commitDir(t testing.TB, r *Repo, dir, ref string, opts DirOptions) Checksum {
	t.Helper()
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	d := must[*os.File](t)(os.Open(dir))
	defer d.Close()
	tree, meta, err := txn.WriteDir(d, opts)
	check(t, err)
	sum := must[Checksum](t)(txn.PutCommit(&object.Commit{
		Metadata: object.Dict{{Key: "version", Value: object.Text("1.2")}, {Key: "ostree.ref-binding", Value: object.Texts(ref)}},
		Subject:  "subject", Body: "body", Time: 1700000000, Tree: tree, Meta: meta,
	}))
	check(t, txn.SetRef(ref, sum), txn.Commit())
	return sum
}

func emptyRepo(t testing.TB, mode Mode) (*Repo, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "repo")
	r := must[*Repo](t)(Create(path, mode))
	t.Cleanup(func() { _ = r.Close() })
	return r, path
}

// withoutSync spares a test the syncs that say nothing about what it tests.
func withoutSync(t testing.TB, r *Repo) *Repo {
	t.Helper()
	r.config = r.config.Set("core", "fsync", "false")
	return r
}

// The same directory gives the same commit as ostree commit makes of it, in
// every mode and with the options that change what is committed; and
// libostree's fsck accepts the repository.
func TestCommitsLikeOstree(t *testing.T) {
	lab.Need(t, "ostree")
	dir := sampleTree(t)
	for _, mode := range []Mode{Bare, BareUser, Archive} {
		for _, c := range []struct {
			name string
			opts DirOptions
			args []string
		}{
			{"plain", DirOptions{}, nil},
			{"owner", DirOptions{Owner: &Owner{12, 34}}, []string{"--owner-uid=12", "--owner-gid=34"}},
			{"canonical", DirOptions{CanonicalPermissions: true}, []string{"--canonical-permissions"}},
			{"no xattrs", DirOptions{SkipXattrs: true}, []string{"--no-xattrs"}},
		} {
			t.Run(mode.String()+"/"+c.name, func(t *testing.T) {
				theirs := filepath.Join(t.TempDir(), "repo")
				run(t, "ostree", "init", "--repo="+theirs, "--mode="+strings.TrimSuffix(mode.String(), "-z2"))
				run(t, "ostree", "config", "--repo="+theirs, "set", "core.fsync", "false")
				want := run(t, "ostree", slices.Concat([]string{
					"commit", "--repo=" + theirs, "--branch=test/ref", "--tree=dir=" + dir,
					"--subject=subject", "--body=body", "--timestamp=@1700000000", "--add-metadata-string=version=1.2",
				}, c.args)...)
				r, path := emptyRepo(t, mode)
				got := commitDir(t, withoutSync(t, r), dir, "test/ref", c.opts)
				if got.String() != want {
					t.Errorf("commit %s, ostree made %s", got, want)
					t.Logf("ostree:\n%s", run(t, "ostree", "--repo="+theirs, "show", "--raw", want))
					t.Logf("ours:\n%s", run(t, "ostree", "--repo="+path, "show", "--raw", got.String()))
				}
				t.Log(run(t, "ostree", "fsck", "--repo="+path))
				if d := diffRepos(t, theirs, path); d != "" {
					t.Errorf("files of the repositories differ (ostree's, ours):\n%s", d)
				}
				if ref := run(t, "ostree", "--repo="+path, "rev-parse", "test/ref"); ref != got.String() {
					t.Errorf("ostree resolves the ref to %s, we wrote %s", ref, got)
				}
			})
		}
	}
}

// A tar of the tree, committed by ostree, is the same commit as the tree.
func TestCommitsLikeOstreesTar(t *testing.T) {
	lab.Need(t, "ostree", "tar")
	dir := sampleTree(t)
	check(t, unix.Removexattr(filepath.Join(dir, "usr/share/xattrs"), "user.empty")) // tar keeps it, a tree on disk does not
	archive := filepath.Join(t.TempDir(), "tree.tar")
	run(t, "tar", "--create", "--file="+archive, "--directory="+dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name", ".")
	theirs := filepath.Join(t.TempDir(), "repo")
	run(t, "ostree", "init", "--repo="+theirs, "--mode=bare")
	want := run(t, "ostree", "commit", "--repo="+theirs, "--branch=test/ref", "--tree=tar="+archive, "--tar-autocreate-parents",
		"--subject=subject", "--body=body", "--timestamp=@1700000000", "--add-metadata-string=version=1.2")
	r, path := emptyRepo(t, Bare)
	if got := commitDir(t, withoutSync(t, r), dir, "test/ref", DirOptions{}); got.String() != want {
		t.Errorf("commit %s, ostree made %s of the tar\n%s", got, want, diffRepos(t, theirs, path))
	}
}

// diffRepos compares the objects of two repositories: names, modes, owners,
// times of regular files, xattrs, and content except where it is deflated.
func diffRepos(t testing.TB, a, b string) string {
	t.Helper()
	list := func(root string) map[string]string {
		out := make(map[string]string)
		check(t, filepath.WalkDir(filepath.Join(root, "objects"), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			out[strings.TrimPrefix(p, root)] = describe(t, p)
			return nil
		}))
		return out
	}
	la, lb := list(a), list(b)
	var diff []string
	for p, d := range la {
		if lb[p] != d {
			diff = append(diff, fmt.Sprintf("%s\n  %s\n  %s", p, d, lb[p]))
		}
	}
	for p, d := range lb {
		if la[p] == "" {
			diff = append(diff, fmt.Sprintf("%s\n  missing\n  %s", p, d))
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "\n")
}

func describe(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Lstat(path, &st))
	out := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
	dir := must[*os.File](t)(os.Open(filepath.Dir(path)))
	defer dir.Close()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if strings.HasSuffix(path, ".file") {
			out += fmt.Sprintf(" mtime %d", st.Mtim.Sec)
		}
		if !strings.HasSuffix(path, ".filez") {
			out += fmt.Sprintf(" sha %s", object.Sum(must[[]byte](t)(os.ReadFile(path))))
		}
	case unix.S_IFLNK:
		out += " -> " + must[string](t)(os.Readlink(path))
	case unix.S_IFDIR:
		out += fmt.Sprintf(" mtime %d", st.Mtim.Sec)
	}
	for _, a := range must[[]fstree.Xattr](t)(linkXattrs(dir, filepath.Base(path))) {
		out += fmt.Sprintf(" %s=%q", a.Name, a.Value)
	}
	return out
}

// A checkout is what ostree checks out, hardlinks included.
func TestChecksOutLikeOstree(t *testing.T) {
	lab.Need(t, "ostree")
	dir := sampleTree(t)
	for _, mode := range []Mode{Bare, BareUser, Archive} {
		t.Run(mode.String(), func(t *testing.T) {
			r, path := emptyRepo(t, mode)
			sum := commitDir(t, withoutSync(t, r), dir, "x", DirOptions{})
			base := filepath.Dir(path)
			args := []string{"checkout", "--repo=" + path}
			if mode == Bare {
				args = append(args, "-H")
			}
			run(t, "ostree", append(args, sum.String(), filepath.Join(base, "theirs"))...)
			root := must[*os.Root](t)(os.OpenRoot(base))
			defer root.Close()
			check(t, r.Checkout(context.Background(), sum, root, "ours", CheckoutOptions{}))
			theirs, ours := listTree(t, filepath.Join(base, "theirs"), mode == Bare), listTree(t, filepath.Join(base, "ours"), mode == Bare)
			for p, d := range theirs {
				if ours[p] != d {
					t.Errorf("%s:\n ostree: %s\n ours:   %s", p, d, ours[p])
				}
			}
			if len(ours) != len(theirs) {
				t.Errorf("%d files checked out, ostree makes %d", len(ours), len(theirs))
			}
		})
	}
}

func listTree(t testing.TB, root string, links bool) map[string]string {
	t.Helper()
	out := make(map[string]string)
	check(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s := describe(t, p)
		if i := d.Type(); links && !i.IsDir() {
			var st unix.Stat_t
			check(t, unix.Lstat(p, &st))
			if st.Nlink > 1 {
				s += fmt.Sprintf(" inode %d", st.Ino)
			}
		}
		out[strings.TrimPrefix(p, root)] = s
		return nil
	}))
	return out
}

// What libostree wrote is read back: refs, commits, trees and contents.
func TestReadsOstreesRepositories(t *testing.T) {
	lab.Need(t, "ostree")
	dir := sampleTree(t)
	for _, mode := range []Mode{Bare, BareUser, Archive, BareUserOnly} {
		t.Run(mode.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "repo")
			run(t, "ostree", "init", "--repo="+path, "--mode="+strings.TrimSuffix(mode.String(), "-z2"))
			commit := run(t, "ostree", "commit", "--repo="+path, "--branch=os/stable", "--tree=dir="+dir, "--canonical-permissions", "--no-xattrs")
			run(t, "ostree", "refs", "--repo="+path, "os/stable", "--create=os/alias", "-A")
			r := must[*Repo](t)(Open(path))
			defer r.Close()
			if r.Mode() != mode {
				t.Errorf("mode %s", r.Mode())
			}
			for _, rev := range []string{"os/stable", "os/alias", commit} {
				if c, err := r.ResolveRev(rev); err != nil || c.String() != commit {
					t.Errorf("%s resolves to %s, %v; ostree says %s", rev, c, err, commit)
				}
			}
			refs := must[map[string]Checksum](t)(r.Refs("os/"))
			if len(refs) != 2 || refs["os/alias"].String() != commit {
				t.Errorf("refs: %v", refs)
			}
			if a := must[map[string]string](t)(r.Aliases()); len(a) != 1 || a["os/alias"] != "os/stable" {
				t.Errorf("aliases: %v", a)
			}
			sum := must[Checksum](t)(r.ResolveRev("os/stable"))
			tree := must[*fstree.Tree](t)(r.ReadTree(context.Background(), sum))
			c := must[*object.Commit](t)(r.ReadCommit(sum))
			// Written again, the tree has the same checksums.
			again, _ := emptyRepo(t, BareUser)
			txn := must[*Txn](t)(again.Txn(context.Background()))
			defer func() { _ = txn.Abort() }()
			dt, dm, err := txn.WriteTree(tree, r.Contents())
			check(t, err)
			if dt != c.Tree || dm != c.Meta {
				t.Errorf("the tree read back is written as %s %s, ostree has %s %s", dt, dm, c.Tree, c.Meta)
			}
		})
	}
}
