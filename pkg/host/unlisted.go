package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/kedge-os/kedge/pkg/fault"
)

// unlisted returns how many deployments of a sysroot lie where the pattern matches.
// It is asked where no boot entry leads to any.
func unlisted(root *os.Root, pattern string) (n int, err error) {
	names, err := fs.Glob(root.FS(), pattern)
	for _, name := range names {
		if st, err := root.Lstat(name); err == nil && st.IsDir() {
			n++
		}
	}
	return n, err
}

// checkListed refuses to write to a sysroot in which deployments lie and no boot
// entry leads to any: its boot directory is not mounted, or lost, and a clean-up would
// take every one of them for garbage. What an interrupted installation left is
// garbage: one deployment, and nothing that was ever done.
func (a *announcement) checkListed(root *os.Root, pattern string, listed int) error {
	if listed > 0 {
		return nil
	}
	n, err := unlisted(root, pattern)
	if err != nil || n == 0 {
		return err
	}
	if n == 1 {
		_, begun := root.Stat(path.Join(a.dir, unfinishedFile))
		if _, done := root.Stat(path.Join(a.dir, historyFile)); begun == nil && errors.Is(done, fs.ErrNotExist) {
			return nil
		}
	}
	return errUnlisted(n)
}

func errUnlisted(n int) error {
	return fault.New(fault.Conflict, "mount the boot file system at boot in the sysroot, and the EFI system partition where there is one; nothing was changed", "%s", unlistedText(n))
}

func unlistedText(n int) string {
	what := "a deployment lies"
	if n > 1 {
		what = fmt.Sprintf("%d deployments lie", n)
	}
	return what + " here, and no boot entry leads to any: the boot directory is empty or not mounted"
}
