package host

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/kedge-os/kedge/pkg/boot/uki"
	"github.com/kedge-os/kedge/pkg/fault"
)

// AutoBackend is the Backend that a directory has already, else the one that the
// image asks for with BackendLabel, else the one that its files are made for.
//
// Its files are known when it has been fetched, and each backend keeps what it
// fetches in a form of its own. So the ostree backend is tried first, which is
// bootc's default too, and where the image then turns out to be made for the
// other one the installation begins anew.
const AutoBackend = "auto"

// BackendLabel is the label with which an image asks for a backend.
const BackendLabel = "io.kedge.backend"

// discardedDir is where what was begun on the ostree backend waits to be removed.
const discardedDir = ".kedge-discarded"

// errForComposefs says that an installation has to begin anew.
var errForComposefs = errors.New("the image is made for the composefs backend")

func (o InstallOptions) auto() bool { return o.Backend == "" || o.Backend == AutoBackend }

// backend returns the one to install: a directory that has one keeps it. nil
// leaves it to the image.
func (o InstallOptions) backend(cfg Config) (*backend, error) {
	there, err := findBackend(cfg)
	if fault.KindOf(err) == fault.NotFound || errors.Is(err, fs.ErrNotExist) {
		there, err = nil, nil
	}
	if err != nil || o.auto() {
		return there, err
	}
	b, err := backendNamed(o.Backend)
	if err == nil && there != nil && there != b {
		return nil, fault.New(fault.Conflict, "use an empty directory or a file system that was just made",
			"%s is a sysroot of the %s backend", cfg.Sysroot, there.name)
	}
	return b, err
}

// backendFor returns the backend that an image asks for, and its name; of one that
// does not ask, which to try, and AutoBackend.
func backendFor(labels map[string]string) (b *backend, name string, err error) {
	if name = labels[BackendLabel]; name == "" {
		return ostreeBackend, AutoBackend, nil
	}
	if b, err = backendNamed(name); err != nil {
		err = fault.New(fault.Conflict, "say which one: --backend ostree or --backend composefs", "the image's label %s: %w", BackendLabel, err)
	}
	return b, name, err
}

// forComposefs reports whether a root on the ostree backend lacks what mounts it
// there, and has what mounts it on the composefs backend; or came with a unified
// kernel image, whose initramfs is for that one.
func (h *Host) forComposefs(ctx context.Context, root string) (bool, error) {
	if ok, err := h.store.Exists(root, uki.Dir); err != nil {
		return false, err
	} else if ok {
		t, err := h.store.Tree(ctx, root)
		if err != nil {
			return false, err
		}
		if n, err := uki.Find(t); n != nil || err != nil {
			return n != nil, err
		}
	}
	has := func(path string) (bool, error) { return h.store.Exists(root, path) }
	if ok, err := ostreeBackend.needs.met(has); ok || err != nil {
		return false, err
	}
	return composefsBackend.needs.met(has)
}

// discardOSTree takes back what an installation that has no deployment yet made.
// The commit point is the rename; removeDiscarded does the rest, the next time
// too.
func discardOSTree(cfg Config) error {
	root, err := os.OpenRoot(cfg.Sysroot)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Rename(ostreeBackend.own[0], discardedDir)
}

func removeDiscarded(cfg Config) error {
	root, err := os.OpenRoot(cfg.Sysroot)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(discardedDir)
}
