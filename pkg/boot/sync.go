package boot

import (
	"os"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
)

// syncRoot makes everything in the sysroot's file system durable.
func (s *Sysroot) syncRoot() error { return s.syncfs(s.root) }

// syncRootDir makes the entries of one directory durable.
func (s *Sysroot) syncRootDir(dir string) error {
	if s.opts.NoSync {
		return nil
	}
	return atomicfile.SyncDir(s.root, dir)
}

func (s *Sysroot) syncfs(root *os.Root) error {
	if s.opts.NoSync {
		return nil
	}
	return bootdir.Syncfs(root)
}

// syncBoot makes the boot file system durable for boot loaders too.
func (s *Sysroot) syncBoot() error {
	if s.opts.NoSync {
		return nil
	}
	boot, err := s.bootDir()
	if err != nil {
		return err
	}
	host := s.host
	if s.booted != nil {
		host = nil
	}
	return bootdir.Sync(boot, host, s.log)
}
