package bootdir

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// margin is what is asked for beside the kernels: entries, directories.
const margin = 1 << 20

// Space returns the block size and the free bytes of the boot file system.
func Space(boot *os.Root) (block, free int64, err error) {
	f, err := boot.Open(".")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the free space of /boot: %w", err)
	}
	return st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// Fits reports whether need bytes of kernels can be written where free are.
func Fits(need, free int64) bool { return need == 0 || need+margin <= free }

// NoSpace is the error of a boot file system that is too small.
func NoSpace(need, free int64) error {
	return fault.New(fault.NoSpace, "free space on /boot (kedge cleanup removes old deployments) and run the command again; nothing was changed",
		"install the kernel: %d bytes are needed on /boot and %d are free", need+margin, free)
}
