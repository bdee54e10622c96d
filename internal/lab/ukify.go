package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// UKI is what a unified kernel image is made of: files, and a command line.
type UKI struct {
	Kernel, Initramfs, OSRelease string
	Cmdline                      string
}

// Make has systemd's ukify make the unified kernel image at out
// (hack/lab/ukify.sh; root).
func (u UKI) Make(ctx context.Context, out string) (err error) {
	root, err := Make(ctx, "ukify.sh")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), "ukify-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// What is signed would be signed here; the firmware of the lab asks for nothing.
	if _, err := Command(ctx, "bwrap", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", dir, "/work",
		"--ro-bind", u.Kernel, "/tmp/vmlinuz", "--ro-bind", u.Initramfs, "/tmp/initrd", "--ro-bind", u.OSRelease, "/tmp/os-release",
		"--unshare-pid", "--unshare-net", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin", "--setenv", "LC_ALL", "C.UTF-8",
		"ukify", "build", "--linux=/tmp/vmlinuz", "--initrd=/tmp/initrd", "--os-release=@/tmp/os-release", "--cmdline="+u.Cmdline, "--output=/work/out.efi"); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "out.efi"), out)
}
