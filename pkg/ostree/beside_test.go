package ostree

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// libostree and kedge write to one repository at a time and after each other:
// neither takes away what the other is staging, and libostree continues what
// kedge has left.
func TestWritesBesideOstree(t *testing.T) {
	lab.Need(t, "ostree")
	lab.NeedRoot(t)
	r, path := emptyRepo(t, Bare)
	src := t.TempDir()
	check(t, os.WriteFile(filepath.Join(src, "f"), []byte("theirs"), 0o644))

	txn := must[*Txn](t)(r.Txn(context.Background()))
	ours := putCommit(t, txn, "ours")
	theirs := run(t, "ostree", "commit", "--repo="+path, "--branch=theirs", "--tree=dir="+src)
	check(t, txn.SetRef("ours", ours), txn.Commit())
	run(t, "ostree", "fsck", "--repo="+path)
	for ref, want := range map[string]string{"ours": ours.String(), "theirs": theirs} {
		if got := must[Checksum](t)(r.ResolveRev(ref)); got.String() != want {
			t.Errorf("ref %s is %s, want %s", ref, got, want)
		}
	}

	txn = must[*Txn](t)(r.Txn(context.Background()))
	putCommit(t, txn, "abandoned")
	check(t, txn.Abort())
	check(t, os.WriteFile(filepath.Join(src, "f"), []byte("theirs again"), 0o644))
	run(t, "ostree", "commit", "--repo="+path, "--branch=theirs", "--tree=dir="+src)
	run(t, "ostree", "fsck", "--repo="+path)
	if left := tmpNames(t, path); len(left) > 0 {
		t.Errorf("after ostree continued our staging directory tmp/ has %v", left)
	}
	must[PruneResult](t)(r.Prune(context.Background(), PruneOptions{}))
	run(t, "ostree", "fsck", "--repo="+path)
}

func TestOstreeReadsOurDetachedMetadata(t *testing.T) {
	lab.Need(t, "ostree")
	r, path := emptyRepo(t, BareUser)
	c := commitRef(t, r, "r", "x")
	txn := must[*Txn](t)(r.Txn(context.Background()))
	check(t, txn.PutCommitMeta(c, object.Dict{{Key: "key", Value: object.Text("value")}}), txn.Commit())
	if got := run(t, "ostree", "show", "--repo="+path, "--print-detached-metadata-key=key", "r"); got != "'value'" {
		t.Errorf("ostree reads %s, want 'value'", got)
	}
}

// An archive repository of ours can be pulled from.
func TestOstreePullsFromOurArchive(t *testing.T) {
	lab.Need(t, "ostree")
	dir := sampleTree(t)
	r, path := emptyRepo(t, Archive)
	sum := commitDir(t, withoutSync(t, r), dir, "os/ref", DirOptions{})
	theirs := filepath.Join(t.TempDir(), "repo")
	run(t, "ostree", "init", "--repo="+theirs, "--mode=bare")
	run(t, "ostree", "pull-local", "--untrusted", "--repo="+theirs, path, "os/ref")
	run(t, "ostree", "fsck", "--repo="+theirs)
	pulled := must[*Repo](t)(Open(theirs))
	defer pulled.Close()
	if got := must[Checksum](t)(pulled.ResolveRev("os/ref")); got != sum {
		t.Errorf("ostree pulled %s, want %s", got, sum)
	}
}
