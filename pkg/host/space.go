package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/boot/bootdir"
	"github.com/kedge-os/kedge/pkg/fault"
)

// expansion is how many bytes a store takes for two compressed bytes of a
// layer, where nothing better is known: system images compress to a little
// less than half.
const expansion = 5

// overhead is what metadata, a copy of /etc and the deployment's own
// directories take beside the contents of an image.
const overhead = 16 << 20

// space estimates what a move to the image takes, before anything is fetched,
// and what there is: on the root's file system and, if it is another one, on
// that of /boot and of the boot loader's partition, where a new kernel is taken to
// be as large as the largest one there, and the kernels of deployments that go
// anyway to make room.
func (h *Host) space(list deployments, image *imageInfo) []v1.PlanSpace {
	need := int64(overhead)
	fetch := false
	for _, l := range image.layers {
		if h.store.HasLayer(l) {
			continue
		}
		fetch = true
		if strings.HasSuffix(l.mediaType, ".tar") {
			need += l.size
		} else {
			need += l.size * expansion / 2
		}
	}
	rootPath, bootPath := h.cfg.Sysroot, h.bootPath()
	root, err := fileSystem(h.root.Name())
	if err != nil {
		h.cfg.Log.Warn("the free space is not known", "path", rootPath, "error", err)
		return nil
	}
	kernel := int64(0)
	if fetch || list == nil {
		kernel = largestKernel(os.DirFS(bootPath), h.store.KernelDirs())
	}
	bootGain, loaderGain, err := h.store.Prunable()
	if err != nil {
		h.cfg.Log.Warn("what can be freed on /boot is not known", "error", err)
	}
	var spaces []v1.PlanSpace
	boot, err := fileSystem(bootPath)
	if err != nil || boot.id == root.id {
		spaces = append(spaces, root.plan(rootPath, need+kernel, 0))
	} else {
		spaces = append(spaces, root.plan(rootPath, need, 0), boot.plan(bootPath, kernel, bootGain))
	}
	if l := h.store.Loader().Root(); l != nil {
		largest := int64(0)
		if fetch || list == nil {
			largest = largestKernel(l.FS(), h.store.LoaderDirs()...)
		}
		if _, free, err := bootdir.Space(l); err == nil {
			spaces = append(spaces, filesystem{free: free}.plan("the EFI system partition", largest, loaderGain))
		}
	}
	return spaces
}

// bootPath is where the boot directory is.
func (h *Host) bootPath() string {
	if h.Booted() {
		return filepath.Join(h.cfg.Machine, "boot")
	}
	return filepath.Join(h.cfg.Sysroot, "boot")
}

// filesystem is what statfs and stat say.
type filesystem struct {
	id   uint64
	free int64
}

func fileSystem(path string) (f filesystem, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return f, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return f, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return filesystem{st.Dev, int64(fs.Bavail) * fs.Bsize}, nil
}

// plan says whether need bytes fit, gain bytes being freed before.
func (f filesystem) plan(path string, need, gain int64) v1.PlanSpace {
	return v1.PlanSpace{Path: path, Needed: need, Free: f.free, Enough: need <= f.free+gain}
}

// largestKernel returns the size of the largest kernel with its initramfs that
// is installed in a directory of a boot directory that one of the patterns matches,
// or is one file; 0 where there is none.
func largestKernel(boot fs.FS, patterns ...string) (largest int64) {
	var dirs []string
	for _, p := range patterns {
		if found, err := fs.Glob(boot, p); err == nil {
			dirs = append(dirs, found...)
		}
	}
	for _, dir := range dirs {
		if st, err := fs.Stat(boot, dir); err == nil && !st.IsDir() {
			largest = max(largest, st.Size())
			continue
		}
		files, err := fs.ReadDir(boot, dir)
		if err != nil {
			continue
		}
		var size int64
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				size += info.Size()
			}
		}
		largest = max(largest, size)
	}
	return largest
}

// checkSpace returns a NoSpace error for the first file system that is too
// small.
func checkSpace(spaces []v1.PlanSpace) error {
	for _, s := range spaces {
		if !s.Enough {
			return fault.New(fault.NoSpace, "free some space there (kedge cleanup removes what is not needed) and run the command again; nothing was changed",
				"%s has too little space: %s", s.Path, spaceText(s))
		}
	}
	return nil
}

func spaceText(s v1.PlanSpace) string {
	return fmt.Sprintf("about %d MB are needed, %d MB are free", (s.Needed+1e6-1)/1e6, s.Free/1e6)
}
