// Package stamp keeps the news of a finalisation that failed at shutdown for
// after the boot, in a keyfile of kedge's own.
package stamp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/keyfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Failure is a finalisation that failed.
type Failure struct {
	Time       time.Time
	Deployment string // its name
	Message    string
}

const (
	group = "finalize"
	// maxSize bounds what is read.
	maxSize = 1 << 20
)

// Write replaces the stamp name beneath root.
func Write(root *os.Root, name string, failure Failure) error {
	f := &keyfile.File{}
	f.Set(group, "time", failure.Time.UTC().Format(time.RFC3339))
	f.Set(group, "deployment", failure.Deployment)
	f.Set(group, "message", strings.ToValidUTF8(failure.Message, "?"))
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(root, name, f.Encode(), 0o644)
}

// Read returns the stamp; nil where there is none.
func Read(root *os.Root, name string) (*Failure, error) {
	st, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxSize {
		return nil, fault.New(fault.Corrupt, "", "%s is not a regular file of at most %d bytes", name, maxSize)
	}
	text, err := root.ReadFile(name)
	if err != nil {
		return nil, err
	}
	f, err := keyfile.Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	failure := &Failure{}
	failure.Deployment, _ = f.Get(group, "deployment")
	failure.Message, _ = f.Get(group, "message")
	at, _ := f.Get(group, "time")
	failure.Time, _ = time.Parse(time.RFC3339, at)
	return failure, nil
}

// Clear removes the stamp; none is fine.
func Clear(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
