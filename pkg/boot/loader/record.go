package loader

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Record is what kedge keeps of a host's boot loader, beside the store.
type Record struct {
	Bootloader string `json:"bootloader"`
	// Token tells the entries of this sysroot from those of others on the same
	// partition: eight hex digits.
	Token string `json:"token"`
	// Extended: kernels and entries are on the extended boot loader partition.
	Extended bool `json:"extended,omitempty"`
}

const recordFile = "loader"

var tokenForm = regexp.MustCompile(`^[0-9a-f]{8}$`)

// NewRecord returns a record with a new token.
func NewRecord(bootloader string) Record {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return Record{Bootloader: bootloader, Token: hex.EncodeToString(b[:])}
}

// ReadRecord reads the record in kedge's state directory; the zero value where
// there is none.
func ReadRecord(root *os.Root, stateDir string) (r Record, err error) {
	name := path.Join(stateDir, recordFile)
	st, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if st.Size() > 4<<10 {
		return r, fault.New(fault.Corrupt, "remove the file", "%s is too large", name)
	}
	data, err := root.ReadFile(name)
	if err != nil {
		return r, err
	}
	if err = json.Unmarshal(data, &r); err == nil && !tokenForm.MatchString(r.Token) {
		err = fmt.Errorf("%q is no token", r.Token)
	}
	if err != nil {
		return Record{}, fault.New(fault.Corrupt, "remove the file", "read %s: %w", name, err)
	}
	return r, nil
}

// Write writes the record.
func (r Record) Write(root *os.Root, stateDir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(stateDir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(root, path.Join(stateDir, recordFile), append(data, '\n'), 0o644)
}
