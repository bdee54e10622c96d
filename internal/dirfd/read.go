package dirfd

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// ReadFile reads a regular file of at most limit bytes beneath root, following
// symlinks there. Anything else of that name, a symlink that leads out of root or in
// a circle among it, is a Corrupt error: whoever reads a directory that others
// write to passes it over.
func ReadFile(root *os.Root, name string, limit int64) ([]byte, error) {
	st, err := root.Stat(name)
	if errno := syscall.Errno(0); err != nil && (!errors.As(err, &errno) || errno == unix.ELOOP || errno == unix.ENOTDIR) {
		return nil, fault.New(fault.Corrupt, "", "%s is a symlink that leads to no file there: %w", name, err)
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fault.New(fault.Corrupt, "", "%s is not a regular file of at most %d bytes", name, limit)
	}
	return root.ReadFile(name)
}
