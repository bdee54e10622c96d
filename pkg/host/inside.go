package host

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kedge-os/kedge/pkg/fault"
)

// entrances are what a sysroot is entered by where file systems of its own may be
// mounted, and what is therefore opened by its path. Everything below is opened
// beneath one of them.
var entrances = []string{"sysroot", "boot", "efi", "boot/efi"}

// checkInside refuses a sysroot that is not the machine's own and one of whose
// entrances is a symlink out of it: what is written there would be written to the
// machine, its boot loader included.
func (c Config) checkInside() error {
	if c.onMachine() {
		return nil
	}
	root, err := os.OpenRoot(c.Sysroot)
	if err != nil {
		return nil // whoever opens it next tells better
	}
	defer root.Close()
	for _, name := range entrances {
		_, err := root.Stat(name)
		// The kernel's errors say that there is nothing to enter; os.Root's own says
		// that the path leads out.
		if errno := syscall.Errno(0); err == nil || errors.As(err, &errno) {
			continue
		}
		return fault.New(fault.Conflict, "replace the symlink by a directory, and mount there what belongs to this sysroot",
			"open the sysroot: %s is a symlink that leads out of it", filepath.Join(c.Sysroot, name))
	}
	return nil
}
