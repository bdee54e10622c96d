package imageroot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/fault"
)

// markerFile is bootc's marker of a staged deployment.
const (
	runDir     = "run/composefs"
	markerFile = runDir + "/staged-deployment"
)

// marker is what markerFile holds: bootc's two fields and kedge's own. bootc
// drops fields that it does not know when it writes the file, and then the
// deployment is its own to finalise.
type marker struct {
	Digest string       `json:"depl_id"`
	Locked bool         `json:"finalization_locked"`
	Kedge  *markerKedge `json:"kedge,omitempty"`
}

type markerKedge struct {
	// Entry is the boot entry that the deployment gets.
	Entry string `json:"entry"`
	// Merge is the digest of the deployment whose /etc it continues, "" for none.
	Merge string `json:"merge,omitempty"`
	// Began is the time at which the first merge of /etc began, in Unix
	// nanoseconds.
	Began int64 `json:"began"`
	// Pending: /etc and origin wait in kedge's own directory.
	Pending bool `json:"pending,omitempty"`
	Retain  bool `json:"retain,omitempty"`
	Hold    bool `json:"hold,omitempty"`
}

// readMarker returns the marker, nil where nothing is staged.
func (s *Sysroot) readMarker() (*marker, error) {
	data, err := readSmall(s.host, markerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeMarker(data)
}

func decodeMarker(data []byte) (*marker, error) {
	m := &marker{}
	err := json.Unmarshal(data, m)
	if err == nil && !digestForm.MatchString(m.Digest) {
		err = fmt.Errorf("%q is not a digest", m.Digest)
	}
	if err == nil && m.Kedge != nil && m.Kedge.Merge != "" && !digestForm.MatchString(m.Kedge.Merge) {
		err = fmt.Errorf("%q is not a digest", m.Kedge.Merge)
	}
	if err != nil {
		return nil, fault.New(fault.Corrupt, "remove the file: what was staged is lost, nothing else", "read /%s: %w", markerFile, err)
	}
	return m, nil
}

func (s *Sysroot) writeMarker(m *marker) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.host.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(s.host, markerFile, data, 0o644)
}

// loadStaged puts the staged deployment before all others.
func (s *Sysroot) loadStaged() error {
	if s.booted == nil {
		return nil
	}
	m, err := s.readMarker()
	if err != nil || m == nil {
		return err
	}
	d, err := s.stagedOf(m)
	if err != nil || d == nil {
		return err
	}
	if d.Ours && !d.pending && s.first(d.same) != nil {
		// A finalisation was killed between its commit and the removal of the
		// marker: the deployment is the default already. One that was pending is
		// staged until what waited for it is gone; doing it twice does no harm.
		return nil
	}
	s.mentioned[d.Digest] = true
	d.Staged, d.FinalizationLocked = true, m.Locked
	s.list = append([]*Deployment{d}, s.list...)
	return nil
}

// stagedOf returns the deployment that the marker names; nil where it is not
// whole, which is a problem and no error.
func (s *Sysroot) stagedOf(m *marker) (*Deployment, error) {
	staged, err := s.loadEntries(stagedDir)
	if err != nil {
		return nil, err
	}
	if m.Kedge == nil {
		for _, d := range staged {
			if d.Digest == m.Digest {
				d.Held = m.Locked
				return d, nil
			}
		}
		s.problem(fmt.Errorf("the staged deployment %s has no boot entry", m.Digest))
		return nil, nil
	}
	d := &Deployment{Digest: m.Digest, Ours: true, Held: m.Kedge.Hold, pending: m.Kedge.Pending}
	d.Entry = bls.Parse(m.Kedge.Entry)
	if _, d.VerityOptional, d.Type, _ = imageOf(d.Entry); d.Type == TypeUKI {
		if err := s.readUKI(d); err != nil {
			s.problem(fmt.Errorf("the staged deployment: %w", err))
			return nil, nil
		}
	}
	if _, err := s.root.Stat(d.stagedOrigin()); err != nil {
		if d.pending && s.first(d.same) != nil {
			return nil, nil
		}
		s.problem(fmt.Errorf("the staged deployment is gone: %w", err))
		return nil, nil
	}
	d.Origin, err = s.readOrigin(d.stagedOrigin())
	return d, err
}

// dropStaged removes the marker, then what was staged.
func (s *Sysroot) dropStaged(d *Deployment) error {
	if err := s.removeMarker(); err != nil {
		return err
	}
	return s.removeState(d)
}

// removeMarker removes what says that something is staged. The running machine's
// own marker is none of an other sysroot's business.
func (s *Sysroot) removeMarker() error {
	if s.booted != nil {
		if err := s.host.Remove(markerFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove /%s: %w", markerFile, err)
		}
	}
	if s.boot == nil {
		return nil
	}
	return s.boot.RemoveAll(stagedDir)
}
