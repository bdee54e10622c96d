package assess

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// format is the version of the records' file.
const format = 1

const (
	recordsFile = "health.json"
	lockFile    = "health.lock"
	maxRecords  = 4 << 20
	// How much is kept; what is oldest goes.
	maxVerdicts   = 32
	maxQuarantine = 64
)

// Verdict is how the last judged boot of a root went.
type Verdict struct {
	v1.Identity
	v1.Health
}

// Records are what is remembered of boots.
type Records struct {
	V int `json:"v"`
	// Verdicts has each root once, the last judged first.
	Verdicts   []Verdict          `json:"verdicts,omitempty"`
	Quarantine []v1.Quarantined   `json:"quarantine,omitempty"`
	Rollback   *v1.RollbackRecord `json:"rollback,omitempty"`
}

// Verdict returns the last verdict on a root; nil for none.
func (r *Records) Verdict(i v1.Identity) *v1.Health {
	if n := slices.IndexFunc(r.Verdicts, func(v Verdict) bool { return Same(v.Identity, i) }); n >= 0 {
		return &r.Verdicts[n].Health
	}
	return nil
}

// Judge records a verdict on a root, which the deployment id is made of, and
// returns it with its count of failures. What is held of that root comes into
// step, whether it was rolled back by hand before the verdict or after it: a
// failure is the stronger reason, and a good boot ends it, but not the hold of
// what was rolled back by hand.
func (r *Records) Judge(id string, i v1.Identity, h v1.Health) v1.Health {
	before, held := r.Verdict(i), r.Held(i)
	h.Failures = 0
	if h.State == v1.HealthFailed {
		h.Failures = 1
		if before != nil {
			h.Failures += before.Failures
			if before.Boot == h.Boot && before.State == v1.HealthFailed {
				h.Failures-- // the same boot once more
			}
		}
	}
	byHand := r.Rollback != nil && r.Rollback.By == v1.ByUser && r.Rollback.From == id
	switch {
	case held == nil:
	case h.State == v1.HealthFailed && held.Reason == v1.HeldByHand:
		held.Time, held.Reason, held.Check, held.Detail = h.Time, v1.HeldCheck, h.Check, h.Reason
	case h.State == v1.HealthFailed || held.Reason == v1.HeldByHand:
	case byHand:
		held.Time, held.Reason, held.Check, held.Detail = r.Rollback.Time, v1.HeldByHand, "", ""
	default:
		r.Release(func(q v1.Quarantined) bool { return Same(q.Identity, i) })
	}
	r.Forget(i)
	r.Verdicts = slices.Insert(r.Verdicts, 0, Verdict{i, h})
	r.Verdicts = r.Verdicts[:min(len(r.Verdicts), maxVerdicts)]
	return h
}

// Forget removes the verdict on a root.
func (r *Records) Forget(i v1.Identity) {
	r.Verdicts = slices.DeleteFunc(r.Verdicts, func(v Verdict) bool { return Same(v.Identity, i) })
}

// Hold puts a root into quarantine; one that is there for a failure stays
// there for that.
func (r *Records) Hold(q v1.Quarantined) {
	q.Key = Key(q.Identity)
	if n := slices.IndexFunc(r.Quarantine, func(o v1.Quarantined) bool { return o.Key == q.Key }); n >= 0 {
		if q.Reason == v1.HeldByHand {
			return
		}
		r.Quarantine = slices.Delete(r.Quarantine, n, n+1)
	}
	r.Quarantine = slices.Insert(r.Quarantine, 0, q)
	r.Quarantine = r.Quarantine[:min(len(r.Quarantine), maxQuarantine)]
}

// Held returns why a root is held; nil where it is not.
func (r *Records) Held(i v1.Identity) *v1.Quarantined {
	return r.find(func(q *v1.Quarantined) bool { return Same(q.Identity, i) })
}

// HeldTarget is Held for a root that is not made yet: local are the kernel
// arguments it would get beside its image's own. Of those that were rolled back
// by hand only those are found that byHand asks for.
func (r *Records) HeldTarget(i v1.Identity, local []string, byHand bool) *v1.Quarantined {
	return r.find(func(q *v1.Quarantined) bool {
		return q.Identity.Image == i.Image && q.Identity.Packages == i.Packages && q.Identity.Initramfs == i.Initramfs &&
			slices.Equal(q.LocalKargs, local) && (byHand || q.Reason != v1.HeldByHand)
	})
}

func (r *Records) find(match func(*v1.Quarantined) bool) *v1.Quarantined {
	for n := range r.Quarantine {
		if match(&r.Quarantine[n]) {
			return &r.Quarantine[n]
		}
	}
	return nil
}

// Release takes roots out of quarantine and returns them.
func (r *Records) Release(match func(v1.Quarantined) bool) (gone []v1.Quarantined) {
	for _, q := range r.Quarantine {
		if match(q) {
			gone = append(gone, q)
		}
	}
	r.Quarantine = slices.DeleteFunc(r.Quarantine, match)
	return gone
}

// Load reads the records in the directory dir beneath root; empty ones where
// there are none.
func Load(root *os.Root, dir string) (*Records, error) {
	r := &Records{V: format}
	name := path.Join(dir, recordsFile)
	st, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the records of boots: %w", err)
	}
	const hint = "kedge health quarantine clear begins anew"
	if !st.Mode().IsRegular() || st.Size() > maxRecords {
		return nil, fault.New(fault.Corrupt, hint, "the records of boots: %s is not a file of at most %d bytes", name, maxRecords)
	}
	data, err := root.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the records of boots: %w", err)
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fault.New(fault.Corrupt, hint, "the records of boots: %s: %w", name, err)
	}
	if r.V != format {
		return nil, fault.New(fault.Conflict, "use the kedge that wrote it, or a newer one", "the records of boots: %s has format %d, which this kedge does not know", name, r.V)
	}
	return r, nil
}

// Update changes the records in the directory dir beneath root, which is made.
// It does not need the sysroot's lock: a long upgrade must not keep a verdict
// from being recorded. Records that cannot be read are begun anew: they hold
// nothing that a boot needs. The commit point is the rename of the new file;
// where change leaves all as it was, nothing is written.
func Update(root *os.Root, dir string, change func(*Records) error) error {
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the records of boots: %w", err)
	}
	lock, err := root.OpenFile(path.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write the records of boots: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the records of boots: %w", err)
	}
	r, err := Load(root, dir)
	var before []byte
	switch {
	case fault.KindOf(err) == fault.Corrupt:
		r = &Records{V: format}
	case err != nil:
		return err
	default:
		if before, err = json.Marshal(r); err != nil {
			return err
		}
	}
	if err := change(r); err != nil {
		return err
	}
	after, err := json.Marshal(r)
	if err != nil || string(before) == string(after) {
		return err
	}
	return atomicfile.Write(root, path.Join(dir, recordsFile), append(after, '\n'), 0o644)
}
