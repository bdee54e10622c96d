package setuproot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// openBeneath opens a path of the file system at top. Symlinks are followed
// there and never out of it.
func openBeneath(top *os.File, path string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(top.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), top.Name()+"/"+path), nil
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return nil, &fs.PathError{Op: "open", Path: top.Name() + "/" + path, Err: err}
		}
	}
}

// openImage opens the image that the plan names and makes sure that it is the
// one: its fs-verity digest is its name. It reports whether the kernel keeps it
// so (fs-verity is on); where the kernel argument does not ask for that, reading
// the image and hashing it has to do.
//
// The image is read as a whole in either case. It is some megabytes, most of
// which the boot needs anyhow, and a damaged block is better named here than met
// later as an I/O error of some program.
func openImage(ctx context.Context, sysroot *os.File, p *Plan) (image *os.File, sealed bool, err error) {
	image, err = openBeneath(sysroot, "composefs/images/"+p.Digest.String(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, fault.New(fault.NotFound, "the image was removed, or root= names another disk than the one it is on", "%w", err)
	}
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			_ = image.Close()
		}
	}()
	st, err := image.Stat()
	if err != nil {
		return nil, false, err
	}
	if !st.Mode().IsRegular() {
		return nil, false, fault.New(fault.Corrupt, "", "%s is no regular file", image.Name())
	}
	if sealed, err = checkSeal(image, p); err != nil {
		return nil, false, err
	}
	got, err := fsverity.Of(ctx, image, st.Size(), p.Digest.Algorithm())
	if err != nil {
		return nil, false, fault.New(fault.Corrupt, "the disk gave back other bytes than were written to it", "%s is damaged: %w", image.Name(), err)
	}
	if got != p.Digest {
		return nil, false, fault.New(fault.Corrupt, "the image was changed or damaged", "%s is not the image that the kernel argument names: its digest is %s", image.Name(), got)
	}
	return image, sealed, nil
}

func checkSeal(image *os.File, p *Plan) (sealed bool, err error) {
	got, err := fsverity.Measure(image)
	switch {
	case err == nil && got == p.Digest:
		return true, nil
	case err == nil:
		return false, fault.New(fault.Corrupt, "the image was replaced by another one", "%s is not the image that the kernel argument names: its fs-verity digest is %s", image.Name(), got)
	case !errors.Is(err, fsverity.ErrNotSealed) && !errors.Is(err, fsverity.ErrNoVerity):
		return false, fmt.Errorf("measure %s: %w", image.Name(), err)
	case p.AllowNoVerity:
		return false, nil
	}
	return false, fault.New(fault.Conflict, "the kernel argument asks for fs-verity; the store was copied, or made on a file system without it", "%s has no fs-verity", image.Name())
}

// storeSealed reports whether every object of the store has fs-verity: its
// meta.json has it exactly then. Where the kernel argument allows a store
// without, a sealed image alone says nothing of the objects: a host installed by
// a kernel without fs-verity has old ones unsealed and new ones sealed.
func storeSealed(sysroot *os.File) bool {
	meta, err := openBeneath(sysroot, "composefs/meta.json", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return false
	}
	defer meta.Close()
	_, err = fsverity.Measure(meta)
	return err == nil
}
