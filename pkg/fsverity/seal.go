package fsverity

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// ErrNoVerity says that a file system or kernel has no fs-verity. The error
// that wraps it is of kind Conflict and has a hint.
var ErrNoVerity = errors.New("no fs-verity here")

// ErrNotSealed says that a file has no fs-verity enabled.
var ErrNotSealed = errors.New("fs-verity is not enabled on the file")

// enableArg is struct fsverity_enable_arg of linux/fsverity.h.
type enableArg struct {
	version       uint32
	hashAlgorithm uint32
	blockSize     uint32
	saltSize      uint32
	saltPtr       uint64
	sigSize       uint32
	_             uint32
	sigPtr        uint64
	_             [11]uint64
}

// digestArg is struct fsverity_digest with room for the longest digest.
type digestArg struct {
	algorithm uint16
	size      uint16
	digest    [64]byte
}

// Seal enables fs-verity on f, which must be open for reading only, and returns
// the digest that the kernel measured. A file that has verity already keeps it
// and is measured. The kernel refuses while any process has the file open for
// writing; what may hold it for an instant is a child of this process between
// fork and exec (CreateSealed shuts that out), so a refusal is tried again for
// up to a second.
func Seal(f *os.File, alg Algorithm) (Digest, error) {
	err := enableVerity(f, alg)
	for wait := time.Millisecond; errors.Is(err, unix.ETXTBSY) && wait <= 512*time.Millisecond; wait *= 2 {
		time.Sleep(wait)
		err = enableVerity(f, alg)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return "", verityError("enable fs-verity on", f.Name(), err)
	}
	return Measure(f)
}

// Measure returns the digest by which the kernel checks reads of f. Without
// verity the error is ErrNotSealed or ErrNoVerity.
func Measure(f *os.File) (Digest, error) {
	arg := digestArg{size: uint16(len(digestArg{}.digest))}
	if err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg)); err != nil {
		return "", verityError("measure fs-verity of", f.Name(), err)
	}
	d := Digest(arg.digest[:min(int(arg.size), len(arg.digest))])
	if a := Algorithm(arg.algorithm); a.Size() != len(d) {
		return "", fault.New(fault.Corrupt, "", "measure fs-verity of %s: a digest of %d bytes by %v", f.Name(), len(d), a)
	}
	return d, nil
}

// CreateSealed makes the new file name in dir with what write gives it, enables
// fs-verity and returns the measured digest. Where that fails the file is gone.
//
// No process is started between the opening of the writable descriptor and the
// end of the ioctl: a child would hold a copy of the descriptor until its exec,
// and the kernel would refuse with ETXTBSY. write must therefore not start or
// wait for a process, and should not wait for a network.
func CreateSealed(dir *os.Root, name string, perm os.FileMode, alg Algorithm, write func(io.Writer) error) (Digest, error) {
	var d Digest
	err := createQuiet(dir, name, perm, write, func(f *os.File) (err error) {
		d, err = Seal(f, alg)
		return err
	})
	return d, err
}

// HoldForks keeps this process from starting others until the returned function
// is called: what they inherit may be open for writing, and the kernel seals no
// such file (ETXTBSY).
func HoldForks() (release func()) {
	probed()
	syscall.ForkLock.RLock()
	return syscall.ForkLock.RUnlock
}

// probed has Go probe for process descriptors, which it does once, by a clone of
// this process that ForkLock does not stop.
var probed = sync.OnceFunc(func() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
})

// createQuiet makes a file and hands its read-only descriptor to sealed, all
// without a fork of this process.
func createQuiet(dir *os.Root, name string, perm os.FileMode, write func(io.Writer) error, sealed func(*os.File) error) (err error) {
	defer HoldForks()()
	w, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = w.Close()
			_ = dir.Remove(name)
		}
	}()
	if err := write(w); err != nil {
		return fmt.Errorf("write %s: %w", w.Name(), err)
	}
	r, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %s: %w", w.Name(), err)
	}
	return sealed(r)
}

func enableVerity(f *os.File, alg Algorithm) error {
	arg := enableArg{version: 1, hashAlgorithm: uint32(alg), blockSize: verityBlock}
	return ioctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	defer runtime.KeepAlive(f)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func verityError(doing, name string, err error) error {
	switch {
	case errors.Is(err, unix.ENODATA):
		return fmt.Errorf("%s %s: %w", doing, name, ErrNotSealed)
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.Conflict,
			"use a file system with fs-verity (ext4 made with -O verity, btrfs, f2fs) and a kernel that has it, or pass --allow-missing-verity",
			"%s %s: %w", doing, name, ErrNoVerity)
	case errors.Is(err, unix.ETXTBSY):
		return fault.New(fault.Busy, "another process has the file open for writing; end it and try again", "%s %s: %w", doing, name, err)
	}
	return fmt.Errorf("%s %s: %w", doing, name, err)
}
