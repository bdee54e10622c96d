package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// LogDisk is a disk image as a block device of this machine, with a write cache,
// whose writes and flushes are logged as those of a machine's disk are: a loop
// device on a file that QEMU's storage daemon serves through FUSE.
type LogDisk struct {
	Device string // /dev/loopN
	daemon *exec.Cmd
	mount  string
}

// NewLogDisk attaches an image. The log, made anew, is complete after Close.
func NewLogDisk(ctx context.Context, image, log string) (*LogDisk, error) {
	d := &LogDisk{mount: image + ".mnt"}
	if err := errors.Join(os.WriteFile(log, nil, 0o600), os.WriteFile(d.mount, nil, 0o600)); err != nil {
		return nil, err
	}
	started := image + ".pid"
	_ = os.Remove(started)
	d.daemon = exec.CommandContext(
		context.WithoutCancel(ctx), "qemu-storage-daemon", "--pidfile", started,
		"--blockdev", "driver=file,node-name=disk,cache.no-flush=on,filename="+image,
		"--blockdev", "driver=file,node-name=log,cache.no-flush=on,filename="+log,
		"--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log",
		"--export", "type=fuse,id=export,node-name=logged,writable=on,mountpoint="+d.mount,
	)
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	d.daemon.Stderr = &said
	if err := d.daemon.Start(); err != nil {
		return nil, err
	}
	// The daemon writes its process's number when the export is there.
	for try := 0; ; try++ {
		if _, err := os.Stat(started); err == nil {
			break
		}
		if try == 1000 {
			return nil, errors.Join(fmt.Errorf("qemu-storage-daemon does not come up: %s", said.String()), d.Close())
		}
		time.Sleep(10 * time.Millisecond)
	}
	out, err := Command(ctx, "losetup", "--find", "--show", d.mount)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.Device = strings.TrimSpace(out)
	return d, nil
}

// Close detaches the disk, which must not be mounted any more.
func (d *LogDisk) Close() error {
	var err error
	if d.Device != "" {
		_, err = Command(context.Background(), "losetup", "--detach", d.Device)
	}
	if serr := d.daemon.Process.Signal(syscall.SIGTERM); serr != nil {
		err = errors.Join(err, serr)
	}
	return errors.Join(err, d.daemon.Wait(), os.Remove(d.mount))
}
