package ostree

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

func TestVerityInConfig(t *testing.T) {
	for text, want := range map[string]Verity{
		"[core]\nrepo_version=1\n":                                       VerityOff,
		"[ex-integrity]\nfsverity=yes\n":                                 VerityOn,
		"[ex-integrity]\nfsverity=true\n":                                VerityOn,
		"[ex-integrity]\nfsverity=maybe\n":                               VerityMaybe,
		"[ex-integrity]\nfsverity=0\n":                                   VerityOff,
		"[ex-integrity]\ncomposefs=yes\n":                                VerityMaybe,
		"[ex-integrity]\ncomposefs=maybe\n":                              VerityMaybe,
		"[ex-integrity]\ncomposefs=no\n":                                 VerityOff,
		"[ex-integrity]\ncomposefs=yes\nfsverity=no\n":                   VerityOff,
		"[ex-fsverity]\nrequired=true\n":                                 VerityOn,
		"[ex-fsverity]\nopportunistic=true\n":                            VerityMaybe,
		"[ex-integrity]\nfsverity=maybe\n[ex-fsverity]\nrequired=true\n": VerityMaybe,
	} {
		got, err := must[*Config](t)(ParseConfig([]byte(text))).Verity()
		if err != nil || got != want {
			t.Errorf("%q: %v and %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"[ex-integrity]\nfsverity=perhaps\n", "[ex-integrity]\ncomposefs=\n"} {
		if _, err := must[*Config](t)(ParseConfig([]byte(text))).Verity(); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%q: %v, want an error of kind corrupt", text, err)
		}
	}
}

// withVerity returns the repository with [ex-integrity] fsverity set.
func withVerity(t testing.TB, r *Repo, value string) *Repo {
	t.Helper()
	check(t, r.SetConfig(r.Config().Set("ex-integrity", "fsverity", value)))
	return r
}

// sealedNames measures every object of a repository.
func sealedNames(t testing.TB, path string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, name := range must[[]string](t)(filepath.Glob(path + "/objects/*/*")) {
		if info := must[os.FileInfo](t)(os.Lstat(name)); !info.Mode().IsRegular() {
			continue
		}
		f := must[*os.File](t)(os.Open(name))
		_, err := fsverity.Measure(f)
		check(t, f.Close())
		out[name] = err == nil
	}
	return out
}

// Where the temporary directory has no fs-verity the refusals are looked at,
// where it has, the seals.
func TestVerityOnWrite(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	has := r.CheckVerity() == nil
	commitRef(t, r, "plain", "plain")
	for name, sealed := range sealedNames(t, path) {
		if sealed {
			t.Errorf("%s is sealed and nobody asked for it", name)
		}
	}

	withVerity(t, r, "maybe")
	commitRef(t, r, "maybe", "maybe")
	if d := must[*FsckResult](t)(r.Fsck(t.Context(), FsckOptions{})); len(d.Damage)+len(d.Unsealed) > 0 {
		t.Errorf("fsck, with fsverity=maybe: %+v", d)
	}

	withVerity(t, r, "yes")
	before := objectList(t, r)
	txn := must[*Txn](t)(r.Txn(t.Context()))
	sum := putCommit(t, txn, "must")
	check(t, txn.PutCommitMeta(sum, object.Dict{}), txn.SetRef("must", sum))
	err := txn.Commit()
	found := must[*FsckResult](t)(r.Fsck(t.Context(), FsckOptions{}))
	if !has {
		if fault.KindOf(err) != fault.Conflict || fault.HintOf(err) == "" || !errors.Is(err, fsverity.ErrNoVerity) {
			t.Errorf("fsverity=yes on a file system without: %v, want an error of kind conflict with a hint", err)
		}
		if got := objectList(t, r); len(got) != len(before) {
			t.Errorf("the refused transaction left objects: %v", got)
		}
		if len(found.Unsealed) != 2 {
			t.Errorf("fsck, with fsverity=yes: %d files without a seal, want the 2 that are there", len(found.Unsealed))
		}
		return
	}
	check(t, err)
	if len(found.Unsealed) != 1 {
		t.Errorf("fsck, with fsverity=yes: %v lack a seal, want the one from before", found.Unsealed)
	}
	check(t, r.EnsureVerity(t.Context()))
	for name, sealed := range sealedNames(t, path) {
		if sealed == (filepath.Ext(name) == ".commitmeta") {
			t.Errorf("after EnsureVerity, %s is sealed: %v", name, sealed)
		}
	}
	if found := must[*FsckResult](t)(r.Fsck(t.Context(), FsckOptions{})); len(found.Damage)+len(found.Unsealed) > 0 {
		t.Errorf("fsck, with everything sealed: %+v", found)
	}
}

func TestEnsureVerityRefuses(t *testing.T) {
	r, path := emptyRepo(t, BareUser)
	if r.CheckVerity() == nil {
		check(t, r.EnsureVerity(t.Context()))
		if done := must[bool](t)(r.allSealed()); !done {
			t.Error("the configuration does not say that everything is sealed")
		}
		return
	}
	before := must[[]byte](t)(os.ReadFile(path + "/config"))
	if err := r.EnsureVerity(t.Context()); fault.KindOf(err) != fault.Conflict {
		t.Errorf("without fs-verity: %v, want an error of kind conflict", err)
	}
	if after := must[[]byte](t)(os.ReadFile(path + "/config")); string(after) != string(before) {
		t.Errorf("the refusal changed the configuration to\n%s", after)
	}
	withVerity(t, r, "perhaps")
	if err := r.EnsureVerity(t.Context()); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("with fsverity=perhaps: %v, want an error of kind corrupt", err)
	}
}
