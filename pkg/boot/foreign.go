package boot

import (
	"errors"
	"io/fs"
	"os"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/bls"
	"github.com/kedge-os/kedge/pkg/boot/karg"
)

// carryForeign copies what stands in the directory in use and is not ours,
// entries of other systems and a boot manager's own files, to loader.V.
func (s *Sysroot) carryForeign(boot *os.Root, version int) error {
	src, err := dirfd.Open(boot, loaderDir(s.version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := dirfd.Open(boot, loaderDir(version))
	if err != nil {
		return err
	}
	defer dst.Close()
	return carry(src, dst, s.isOurs)
}

// carry copies the files of one directory to another but for those in its
// entries directory that ours names.
func carry(src, dst *dirfd.Dir, ours func(dir *dirfd.Dir, name string) bool) error {
	names, err := src.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != "entries" {
			if err := dst.CopyAny(src, n); err != nil {
				return err
			}
			continue
		}
		from, err := src.Sub(n)
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := dst.Sub(n)
		if err != nil {
			return err
		}
		defer to.Close()
		entries, err := from.Names()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !ours(from, e) {
				if err := to.CopyAny(from, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// isOurs reports whether a file in the entries directory is a deployment's
// entry: it has libostree's kind of name and an ostree= argument.
func (s *Sysroot) isOurs(dir *dirfd.Dir, name string) bool {
	if !isEntryName(name) {
		return false
	}
	text, err := dir.ReadSmall(name, maxEntry)
	if err != nil {
		return false
	}
	options, _ := bls.Parse(string(text)).Get("options")
	return len(karg.Parse(options).Values("ostree")) > 0
}
