package host

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/dirfd"
	"github.com/kedge-os/kedge/pkg/boot/source"
	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

// ukiSigner returns what signs unified kernel images on this host: by the
// configuration of the machine that runs, else of the deployment that would. nil:
// no key is configured.
func (h *Host) ukiSigner(ctx context.Context) (uki.Signer, error) {
	list, err := h.store.Deployments()
	if err != nil {
		return nil, err
	}
	d, read := list.current(), h.readMachine
	if !h.Booted() {
		if d == nil {
			return nil, nil
		}
		read = func(name string) ([]byte, error) { return h.readDeployed(ctx, d, name) }
	}
	c, err := uki.LoadConfig(read)
	if c == nil || err != nil {
		return nil, err
	}
	key, err := h.readSigning(ctx, d, c.Key, true)
	if err != nil {
		return nil, err
	}
	certificate, err := h.readSigning(ctx, d, c.Certificate, false)
	if err != nil {
		return nil, err
	}
	return c.NewSigner(key, certificate)
}

// readSigning reads a key, which nobody but root may read or write, or a
// certificate, below /etc or /var. A symlink is not followed.
func (h *Host) readSigning(ctx context.Context, d *deployment, file string, secret bool) ([]byte, error) {
	dir, err := h.signingDir(ctx, d, strings.TrimPrefix(path.Dir(file), "/"))
	if err == nil {
		defer dir.Close()
		var data []byte
		if data, err = readGuarded(dir, path.Base(file), secret); err == nil {
			return data, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Conflict, "put it there, or take /"+uki.ConfigFiles[1]+" away", "unified kernel images are to be signed with %s: %w", file, err)
	}
	if fault.KindOf(err) == fault.Untrusted {
		return nil, fault.New(fault.Untrusted, "chown root:root "+file+" && chmod 600 "+file+"; if others may have read it, make another one", "%s: %w", file, err)
	}
	return nil, err
}

// signingDir opens a directory of the machine that runs, else of a deployment.
func (h *Host) signingDir(ctx context.Context, d *deployment, dir string) (source.Dir, error) {
	if h.Booted() {
		root, err := os.OpenRoot(h.cfg.Machine)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return diskDir(root, dir)
	}
	if dir, ok := cutEtc(dir); ok {
		etc, err := h.store.OpenEtc(ctx, d)
		if err != nil {
			return nil, err
		}
		defer etc.Close()
		return etc.Sub(dir)
	}
	root, vardir, err := h.store.OpenDeployment(d)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	defer vardir.Close()
	return diskDir(vardir, strings.TrimPrefix(strings.TrimPrefix(dir, "var"), "/"))
}

func diskDir(root *os.Root, name string) (source.Dir, error) {
	d, err := dirfd.Open(root, path.Clean(name))
	if err != nil {
		return nil, err
	}
	return source.Disk(d), nil
}

func readGuarded(dir source.Dir, name string, secret bool) ([]byte, error) {
	st, err := dir.Lstat(name)
	switch {
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > uki.MaxFile:
		return nil, fault.New(fault.Conflict, "correct the paths in /"+uki.ConfigFiles[1], "%s is not a file of at most %d bytes", name, uki.MaxFile)
	case secret && (st.Uid != 0 || st.Mode&0o077 != 0):
		return nil, fault.New(fault.Untrusted, "", "others than root may read or write it: it belongs to %d and has the mode %04o", st.Uid, st.Mode&0o7777)
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, uki.MaxFile+1))
}
