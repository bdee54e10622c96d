package ostree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func regular(content string) (*fstree.Inode, io.Reader) {
	return &fstree.Inode{Mode: unix.S_IFREG | 0o644, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Size: int64(len(content))}, strings.NewReader(content)
}

func fileSum(txn *Txn, n *fstree.Inode, content string) (Checksum, error) {
	header, err := txn.fileHeader(n)
	return object.Sum(append(header, content...)), err
}

// putCommit stages a commit of one file.
func putCommit(t testing.TB, txn *Txn, content string) Checksum {
	t.Helper()
	file := must[Checksum](t)(txn.PutFile(regular(content)))
	tree := must[Checksum](t)(txn.PutMeta(object.TypeDirtree, object.EncodeDirtree([]object.FileEntry{{Name: "file", Checksum: file}}, nil)))
	meta := must[Checksum](t)(txn.PutMeta(object.TypeDirmeta, object.EncodeDirmeta(0, 0, unix.S_IFDIR|0o755, nil)))
	return must[Checksum](t)(txn.PutCommit(&object.Commit{Subject: content, Tree: tree, Meta: meta}))
}

func commitRef(t testing.TB, r *Repo, ref, content string) Checksum {
	t.Helper()
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	c := putCommit(t, txn, content)
	check(t, txn.SetRef(ref, c), txn.Commit())
	return c
}

func tmpNames(t testing.TB, path string) []string {
	t.Helper()
	var out []string
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(path, "tmp"))) {
		if e.Name() != "cache" {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestCommitLeavesNothingInTmp(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	commitRef(t, r, "a/b", "x")
	if left := tmpNames(t, path); len(left) > 0 {
		t.Errorf("after a commit tmp/ has %v", left)
	}
}

func TestAbortKeepsTheStagingDirectoryOfThisBoot(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	c := putCommit(t, txn, "kept")
	check(t, txn.Abort())
	if ok := must[bool](t)(r.HasObject(object.Name{Checksum: c, Type: object.TypeCommit})); ok {
		t.Error("an aborted transaction's commit is in the repository")
	}
	left := tmpNames(t, path)
	if len(left) != 1 || !strings.HasPrefix(left[0], r.stagingPrefix()) {
		t.Fatalf("tmp/ has %v, want one staging directory", left)
	}
	txn = must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	if txn.stage.name != left[0] {
		t.Errorf("the next transaction uses %s, want %s", txn.stage.name, left[0])
	}
	if ok := must[bool](t)(txn.has(object.Name{Checksum: c, Type: object.TypeCommit})); !ok {
		t.Error("the next transaction does not see what was staged")
	}
	if again := putCommit(t, txn, "kept"); again != c {
		t.Errorf("the same commit is %s and %s", c, again)
	}
	check(t, txn.SetRef("r", c), txn.Commit())
	if got := must[Checksum](t)(r.ResolveRev("r")); got != c {
		t.Errorf("ref is %s, want %s", got, c)
	}
}

func TestStagingOfAnotherBootIsThrownAway(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	other := filepath.Join(path, "tmp", stagingPrefix+"00000000-0000-0000-0000-000000000000-abcdef")
	check(t, os.MkdirAll(filepath.Join(other, "ab"), 0o755), os.WriteFile(filepath.Join(other, "ab", "torn.file"), nil, 0o644))
	commitRef(t, r, "r", "x")
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("staging directory of another boot: %v, want it gone", err)
	}
}

// What an abandoned transaction staged may lean on objects that were pruned
// since: its commits must not appear with the next one's.
func TestAbandonedCommitsDoNotAppear(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	abandoned := putCommit(t, txn, "abandoned")
	check(t, txn.Abort())
	commitRef(t, r, "r", "other")
	if must[bool](t)(r.HasObject(object.Name{Checksum: abandoned, Type: object.TypeCommit})) {
		t.Error("the commit of an aborted transaction is in the repository")
	}
}

// What processes left that died in the middle of something is cleaned up, and
// what living ones use is not.
func TestCleanTmp(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	tmp := filepath.Join(path, "tmp")
	for _, name := range []string{sidePrefix + "dead", stagingPrefix + r.bootID + "-gone00-lock", "unknown"} {
		check(t, os.WriteFile(filepath.Join(tmp, name), nil, 0o644))
	}
	used := must[*os.File](t)(os.Create(filepath.Join(tmp, sidePrefix+"used")))
	defer used.Close()
	if !must[bool](t)(tryLock(used, true)) {
		t.Fatal("cannot lock")
	}
	txn := must[*Txn](t)(r.Txn(context.Background()))
	again := must[*Repo](t)(Open(path))
	defer again.Close()
	check(t, again.CleanTmp(true))
	if got, want := strings.Join(tmpNames(t, path), " "), sidePrefix+"used "+txn.stage.name+" "+txn.stage.name+"-lock unknown"; got != want {
		t.Errorf("tmp/ has %s, want %s", got, want)
	}
	check(t, txn.Abort(), again.CleanTmp(true))
	if got, want := strings.Join(tmpNames(t, path), " "), sidePrefix+"used unknown"; got != want {
		t.Errorf("tmp/ has %s, want %s", got, want)
	}
}

func TestTwoTransactionsHaveTheirOwnStaging(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	a := must[*Txn](t)(r.Txn(context.Background()))
	b := must[*Txn](t)(r.Txn(context.Background()))
	if a.stage.name == b.stage.name {
		t.Errorf("both use %s", a.stage.name)
	}
	ca, cb := putCommit(t, a, "same"), putCommit(t, b, "same")
	check(t, a.SetRef("a", ca), b.SetRef("b", cb), a.Commit(), b.Commit())
	if left := tmpNames(t, path); len(left) > 0 {
		t.Errorf("tmp/ has %v", left)
	}
}

// TestHelperStages is the process that TestStagingSurvivesKill kills.
func TestHelperStages(t *testing.T) {
	path := os.Getenv("KEDGE_TEST_REPO")
	if path == "" {
		t.Skip("helper of another test")
	}
	r := must[*Repo](t)(Open(path))
	txn := must[*Txn](t)(r.Txn(context.Background()))
	putCommit(t, txn, "before the kill")
	_, _ = os.Stdout.WriteString("staged\n")
	select {}
}

func TestStagingSurvivesKill(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperStages$")
	cmd.Env = append(os.Environ(), "KEDGE_TEST_REPO="+path)
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	check(t, cmd.Start())
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	n, _ := regular("before the kill")
	sum := must[Checksum](t)(fileSum(txn, n, "before the kill"))
	if ok := must[bool](t)(txn.HasFile(sum)); !ok {
		t.Error("what a killed process staged is not found by the next")
	}
	c := putCommit(t, txn, "before the kill")
	check(t, txn.SetRef("r", c), txn.Commit())
	if left := tmpNames(t, path); len(left) > 0 {
		t.Errorf("tmp/ has %v", left)
	}
	if damage := must[*FsckResult](t)(r.Fsck(context.Background(), FsckOptions{})).Damage; len(damage) > 0 {
		t.Errorf("fsck after a kill: %v", damage)
	}
}

func withConfig(t testing.TB, r *Repo, key, value string) *Repo {
	t.Helper()
	check(t, r.SetConfig(r.Config().Set("core", key, value)))
	again := must[*Repo](t)(Open(r.Path()))
	t.Cleanup(func() { _ = again.Close() })
	return again
}

func TestPruneWaitsForTransactions(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	r = withConfig(t, r, "lock-timeout-secs", "0")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	if _, err := r.Prune(context.Background(), PruneOptions{}); fault.KindOf(err) != fault.Busy {
		t.Errorf("prune beside a transaction: %v, want an error of kind Busy", err)
	}
	lab.Need(t, "ostree")
	if out, err := exec.Command("ostree", "prune", "--repo="+r.Path()).CombinedOutput(); err == nil {
		t.Errorf("ostree prune did not respect the transaction's lock: %s", out)
	}
	check(t, txn.Abort())
	if _, err := r.Prune(context.Background(), PruneOptions{}); err != nil {
		t.Errorf("prune after the transaction: %v", err)
	}
	lock := must[*os.File](t)(r.lock(context.Background(), true))
	if out, err := exec.Command("ostree", "commit", "--repo="+r.Path(), "-b", "x", "--tree=dir="+t.TempDir()).CombinedOutput(); err == nil {
		t.Errorf("ostree commit did not respect the exclusive lock: %s", out)
	}
	check(t, lock.Close())
}

func TestLockWaitEndsWithTheContext(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Prune(ctx, PruneOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("prune with a cancelled context: %v", err)
	}
}

func TestNoSpaceIsToldBeforeWriting(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	r = withConfig(t, r, "min-free-space-size", "900000TB")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	_, err := txn.PutFile(regular("x"))
	if fault.KindOf(err) != fault.NoSpace {
		t.Errorf("PutFile: %v, want an error of kind NoSpace", err)
	}
	n, _ := regular("")
	n.Size = 1 << 50
	if _, err := txn.PutFile(n, strings.NewReader("")); fault.KindOf(err) != fault.NoSpace {
		t.Errorf("PutFile of a large file: %v, want an error of kind NoSpace", err)
	}
	check(t, txn.Abort())
	if left := tmpNames(t, path); len(left) > 0 {
		t.Errorf("after running out of space tmp/ has %v, want the space given back", left)
	}
}

func TestContentOfTheWrongSizeIsRefused(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	for _, size := range []int64{1, copyBuffer, 3 * parallelHash} {
		for _, delta := range []int64{-1, 1} {
			n := &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: size}
			if _, err := txn.PutFile(n, bytes.NewReader(make([]byte, size+delta))); size+delta > 0 && fault.KindOf(err) != fault.Corrupt {
				t.Errorf("%d bytes instead of %d: %v, want an error of kind Corrupt", size+delta, size, err)
			}
		}
	}
}

type failingReader struct{ left int }

func (f *failingReader) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := min(len(p), f.left)
	f.left -= n
	return n, nil
}

// A stream that breaks off must not be taken for one that ends.
func TestBrokenStreamIsAnError(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	for _, size := range []int{0, 100, copyBuffer, 2 << 20} {
		n := &fstree.Inode{Mode: unix.S_IFREG | 0o644, Size: int64(size) + 1}
		if _, err := txn.PutFile(n, &failingReader{size}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("stream that fails after %d bytes: %v", size, err)
		}
	}
}

func TestWhatACommitCannotHoldIsATypedError(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	if _, err := txn.PutFile(&fstree.Inode{Mode: unix.S_IFIFO | 0o644}, nil); !errors.Is(err, ErrFileType) {
		t.Errorf("fifo: %v, want ErrFileType", err)
	}
	var ne *object.NameError
	if _, err := txn.PutFile(&fstree.Inode{Mode: unix.S_IFLNK | 0o777, Target: "\xff"}, nil); !errors.As(err, &ne) {
		t.Errorf("symlink that is not UTF-8: %v, want a NameError", err)
	}
	tree := fstree.New()
	tree.Root.Set("a\xff", &fstree.Inode{Mode: unix.S_IFLNK | 0o777, Target: "x"})
	tree.Freeze()
	if _, _, err := txn.WriteTree(tree, nil); !errors.As(err, &ne) {
		t.Errorf("name that is not UTF-8: %v, want a NameError", err)
	}
	if _, err := CreateAt(must[*os.Root](t)(os.OpenRoot(t.TempDir())), "r", BareUserOnly); !errors.Is(err, ErrReadOnlyMode) {
		t.Errorf("creating a bare-user-only repository: %v, want ErrReadOnlyMode", err)
	}
	path := filepath.Join(t.TempDir(), "repo")
	check(t, os.MkdirAll(filepath.Join(path, "objects"), 0o755), os.Mkdir(filepath.Join(path, "tmp"), 0o755),
		os.WriteFile(filepath.Join(path, "config"), []byte("[core]\nrepo_version=1\nmode=bare-split-xattrs\n"), 0o644))
	split := must[*Repo](t)(Open(path))
	defer split.Close()
	if _, err := split.Txn(context.Background()); !errors.Is(err, ErrReadOnlyMode) || fault.KindOf(err) != fault.Conflict {
		t.Errorf("transaction in a bare-split-xattrs repository: %v, want ErrReadOnlyMode", err)
	}
}

func TestRefNames(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	defer func() { _ = txn.Abort() }()
	for _, bad := range []string{"", "/a", "a/", "a//b", "../x", "a/../b", ".hidden", "-x", "a b", "a\n", "ü", "x:../y", "a/b:c", ":c"} {
		if err := txn.SetRef(bad, Checksum{1}); fault.KindOf(err) != fault.Usage {
			t.Errorf("ref %q: %v, want an error of kind Usage", bad, err)
		}
	}
	for _, good := range []string{"a", "a/b/c", "ostree/container/image/docker_3A__2F__2F_q.io", "origin:fedora/40", "a.b_c-d"} {
		if err := txn.SetRef(good, Checksum{1}); err != nil {
			t.Errorf("ref %q: %v", good, err)
		}
	}
}

func TestARefToNothingIsRefused(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	txn := must[*Txn](t)(r.Txn(context.Background()))
	check(t, txn.SetRef("a", Checksum{1}))
	if err := txn.Commit(); fault.KindOf(err) != fault.NotFound {
		t.Errorf("ref to a commit that is not there: %v, want an error of kind NotFound", err)
	}
	if refs := must[map[string]Checksum](t)(r.Refs("")); len(refs) > 0 {
		t.Errorf("refs after that: %v", refs)
	}
}

func TestRefsAreSetMovedAliasedAndDeleted(t *testing.T) {
	lab.Need(t, "ostree")
	r, path := emptyRepo(t, BareUser)
	a, b := commitRef(t, r, "os/one", "a"), commitRef(t, r, "os/two", "b")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	check(t, txn.SetRef("os/one", b), txn.SetRef("os/two", Checksum{}), txn.SetRef("origin:x/y", a), txn.SetAlias("os/latest", "os/one"),
		txn.SetRef("never/there", Checksum{}), txn.Commit())
	if got, want := run(t, "ostree", "refs", "--repo="+path), "origin:x/y\nos/latest\nos/one"; got != want {
		t.Errorf("ostree lists the refs\n%s\nwant\n%s", got, want)
	}
	if got := run(t, "ostree", "rev-parse", "--repo="+path, "os/latest"); got != b.String() {
		t.Errorf("ostree resolves the alias to %s, want %s", got, b)
	}
	if got := run(t, "ostree", "refs", "--repo="+path, "-A"); !strings.Contains(got, "os/latest -> os/one") {
		t.Errorf("ostree lists the aliases %q", got)
	}
	if c := must[Checksum](t)(r.ResolveRev("x/y")); c != a {
		t.Errorf("a ref of a remote resolves to %s, want %s", c, a)
	}
	if _, err := r.ResolveRev("os/two"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("deleted ref: %v, want an error of kind NotFound", err)
	}
	if _, err := r.ResolveRev("os/one^"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("parent of a commit without one: %v, want an error of kind NotFound", err)
	}
}

func TestCommitMetaReplaces(t *testing.T) {
	r, _ := emptyRepo(t, BareUser)
	c := commitRef(t, r, "r", "x")
	for _, v := range []string{"one", "two"} {
		txn := must[*Txn](t)(r.Txn(context.Background()))
		check(t, txn.PutCommitMeta(c, object.Dict{{Key: "k", Value: object.Text(v)}}), txn.Commit())
		d := must[object.Dict](t)(r.ReadCommitMeta(c))
		if got, _ := d.Text("k"); got != v {
			t.Errorf("detached metadata %q, want %q", got, v)
		}
	}
	if d, err := r.ReadCommitMeta(Checksum{1}); d != nil || err != nil {
		t.Errorf("detached metadata of no commit: %v, %v", d, err)
	}
}
