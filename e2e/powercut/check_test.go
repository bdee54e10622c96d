package powercut

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/composefs"
)

// deployment is what a whole one looks like.
type deployment struct {
	kernel  string            // digests of kernel and initramfs
	listing []offline.Listing // of its directory: /etc may differ
	image   map[string]string // composefs: digests of the image and its objects by path
}

// choice is what a boot loader found: kernel and initramfs by their digests, and
// the kernel's arguments.
type choice struct {
	kernel  string
	options string
}

// readMenu reads the default entry and what it names in a mounted file system.
func readMenu(root string) (choice, error) {
	e, err := lab.DefaultEntry(filepath.Join(root, "boot"))
	if err != nil {
		return choice{}, err
	}
	c := choice{options: e.Options}
	for _, name := range []string{e.Linux, e.Initrd} {
		b, err := os.ReadFile(filepath.Join(root, "boot", name))
		if errors.Is(err, os.ErrNotExist) {
			b, err = os.ReadFile(filepath.Join(root, name))
		}
		if err != nil {
			return choice{}, fmt.Errorf("%s: %w", e.File, err)
		}
		c.kernel += fmt.Sprintf("%x ", sha256.Sum256(b))
	}
	return c, nil
}

// target returns the directory of the deployment that a choice leads to.
func (c choice) target(root string) (string, error) {
	for _, o := range strings.Fields(c.options) {
		if link, ok := strings.CutPrefix(o, "ostree="); ok {
			path, err := filepath.EvalSymlinks(filepath.Join(root, link))
			return strings.TrimPrefix(path, root), err
		}
		if digest, ok := strings.CutPrefix(o, "composefs="); ok {
			digest = strings.TrimPrefix(digest, "?")
			_, err := os.Stat(filepath.Join(root, "composefs/images", digest))
			return "/state/deploy/" + digest, err
		}
	}
	return "", fmt.Errorf("the kernel arguments name no root: %s", c.options)
}

// id names what is booted: the deployment, and the kernel's arguments but for the
// one that leads to it.
func (c choice) id(root string) (string, error) {
	dir, err := c.target(root)
	args := slices.DeleteFunc(strings.Fields(c.options), func(o string) bool { return strings.HasPrefix(o, "ostree=") })
	return dir + " " + strings.Join(args, " "), err
}

// mounted calls fn with the file system of an image.
func (fs filesystem) mounted(ctx context.Context, image, options string, fn func(root string) error) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(image), "mnt-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	// A device of its own: mount -o loop takes one that the image has still from
	// the last mount, and that may be read-only.
	device, err := lab.Command(ctx, "losetup", "--find", "--show", image)
	if err != nil {
		return err
	}
	device = strings.TrimSpace(device)
	defer func() {
		_, derr := lab.Command(context.WithoutCancel(ctx), "losetup", "--detach", device)
		err = errors.Join(err, derr)
	}()
	if _, err := lab.Command(ctx, "mount", "-t", fs.kind, "-o", options, device, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(dir)) }()
	return fn(dir)
}

// unmount unmounts a directory. A program that another goroutine is about to
// start has the files of this process for a moment.
func unmount(dir string) error {
	for try := 0; ; try++ {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || try == 500 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// attempt runs code that fails a test and returns why it did.
func attempt(t testing.TB, fn func(testing.TB)) error {
	r := &reporter{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(r)
	}()
	<-done
	return errors.Join(r.errs...)
}

// reporter takes failures of a test for itself.
type reporter struct {
	testing.TB
	errs []error
}

func (r *reporter) Errorf(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *reporter) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *reporter) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

// checker checks disks of one record.
type checker struct {
	t       *testing.T
	kedge   string
	fs      filesystem
	backend offline.Backend
	whole   map[string]*deployment
}

// learn takes the deployments of a disk at rest for whole ones, and returns what
// boots there.
func (c *checker) learn(image string) (id string, err error) {
	err = c.fs.mounted(c.t.Context(), image, c.fs.replayed, func(root string) error {
		menu, err := readMenu(root)
		if err != nil {
			return err
		}
		if id, err = menu.id(root); err != nil {
			return err
		}
		return attempt(c.t, func(t testing.TB) {
			for _, dir := range c.backend.Deployments(t, root) {
				if c.whole[dir] == nil {
					c.whole[dir] = &deployment{}
				}
				c.whole[dir].listing = append(c.whole[dir].listing, offline.List(t, root+dir))
				if c.backend != offline.Composefs {
					continue
				}
				if c.whole[dir].image, err = imageFiles(root, filepath.Base(dir)); err != nil {
					t.Fatal(err)
				}
			}
			dir, _ := menu.target(root)
			c.whole[dir].kernel = menu.kernel
		})
	})
	return id, err
}

// damage is what is wrong with a host that boots into a whole root.
type damage struct{ error }

// check returns what the disk of a cut boots; a damage; or why it does not boot,
// or not into a whole root.
func (c *checker) check(image string, allowed []string) (id string, err error) {
	ctx := c.t.Context()
	var loader choice
	err = c.fs.mounted(ctx, image, c.fs.unreplayed, func(root string) (err error) {
		loader, err = readMenu(root)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("as a boot loader reads the disk: %w", err)
	}
	err = c.fs.mounted(ctx, image, c.fs.replayed, func(root string) error {
		if id, err = c.follow(root, loader, allowed); err != nil {
			return fmt.Errorf("from what the boot loader read: %w", err)
		}
		after, err := readMenu(root)
		if err != nil {
			return fmt.Errorf("after the replay: %w", err)
		}
		if after != loader {
			if _, err := c.follow(root, after, allowed); err != nil {
				return fmt.Errorf("after the replay: %w", err)
			}
		}
		if err := attempt(c.t, func(t testing.TB) { c.checkHost(t, root) }); err != nil {
			return damage{err}
		}
		return nil
	})
	if err != nil {
		return id, err
	}
	if err := c.fs.checkDisk(ctx, image); err != nil {
		return id, damage{err}
	}
	return id, nil
}

// follow checks that a choice is one of those allowed and leads to its whole
// deployment.
func (c *checker) follow(root string, menu choice, allowed []string) (string, error) {
	id, err := menu.id(root)
	if err != nil {
		return "", err
	}
	if !slices.Contains(allowed, id) {
		return "", fmt.Errorf("%s boots, want one of %q", id, allowed)
	}
	dir, _ := menu.target(root)
	if want := c.whole[dir].kernel; menu.kernel != want {
		return "", fmt.Errorf("%s: kernel and initramfs are %s, want %s", id, menu.kernel, want)
	}
	return id, attempt(c.t, func(t testing.TB) { c.checkDeployment(t, root, dir) })
}

// checkDeployment holds a deployment against a whole one, and on the composefs
// backend, where its root is an image, that with its objects.
func (c *checker) checkDeployment(t testing.TB, root, dir string) {
	whole := c.whole[dir]
	if whole == nil {
		t.Fatalf("there is a deployment %s, which the story has not", dir)
	}
	is := offline.List(t, root+dir)
	// The file that an origin was about to become; the next cleanup removes it.
	maps.DeleteFunc(is, func(path, _ string) bool {
		return strings.HasPrefix(path, "/.kedge-") && strings.HasSuffix(path, ".tmp")
	})
	if !slices.ContainsFunc(whole.listing, func(l offline.Listing) bool { return offline.Differences(is, l) == "" }) {
		t.Errorf("deployment %s is not whole:%s", dir, offline.Differences(is, whole.listing[0]))
	}
	if c.backend == offline.Composefs {
		if err := sameFiles(root, whole.image); err != nil {
			t.Errorf("the image of deployment %s is not whole: %v", dir, err)
		}
	}
}

// imageFiles returns the digests of the image of a deployment and of the objects
// that it names.
func imageFiles(root, digest string) (map[string]string, error) {
	image := "/composefs/images/" + digest
	data, err := os.ReadFile(root + image)
	if err != nil {
		return nil, err
	}
	tree, _, err := composefs.ReadImage(data)
	if err != nil {
		return nil, err
	}
	files := map[string]string{image: fmt.Sprintf("%x", sha256.Sum256(data))}
	var visit func(n *composefs.Inode) error
	visit = func(n *composefs.Inode) error {
		if n.Mode&unix.S_IFMT == unix.S_IFREG && n.Payload != "" {
			object := "/composefs/objects/" + n.Payload
			data, err := os.ReadFile(root + object)
			if err != nil {
				return err
			}
			files[object] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		for _, e := range n.Entries {
			if err := visit(e.Inode); err != nil {
				return err
			}
		}
		return nil
	}
	return files, visit(tree.Root)
}

func sameFiles(root string, files map[string]string) error {
	for path, want := range files {
		data, err := os.ReadFile(root + path)
		if err != nil {
			return err
		}
		if fmt.Sprintf("%x", sha256.Sum256(data)) != want {
			return fmt.Errorf("%s has other bytes than at rest", path)
		}
	}
	return nil
}

// checkHost holds libostree or the boot entries, and kedge, against each other
// and every deployment against a whole one.
func (c *checker) checkHost(t testing.TB, root string) {
	theirs, ours := c.backend.Deployments(t, root), c.backend.KedgeDeployments(t, c.kedge, root)
	if fmt.Sprint(theirs) != fmt.Sprint(ours) || len(theirs) == 0 {
		t.Fatalf("there are the deployments %v, kedge status says %v", theirs, ours)
	}
	for _, dir := range theirs {
		c.checkDeployment(t, root, dir)
	}
	if c.backend == offline.OSTree {
		offline.Run(t, "ostree", "fsck", "--quiet", "--repo="+root+"/ostree/repo")
	}
	offline.Run(t, c.kedge, "--sysroot", root, "fsck")
}
