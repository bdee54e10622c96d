// Package fault gives every error that reaches a user its kind, its exit code
// and a hint: what was being done, why it failed, what to do next.
//
// The kinds and exit codes are those of docs/exit-codes.md and never change
// meaning. A package wraps an error with the kind it knows; KindOf classifies
// what nobody wrapped (ENOSPC, EIO, a cancelled context) by its cause.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Kind is the class of a failure as a user or script tells them apart.
type Kind uint8

// The kinds, in the order of their exit codes.
const (
	Internal Kind = iota + 1
	Usage
	NotFound
	Conflict
	Unavailable
	NoSpace
	Untrusted
	Corrupt
	Busy
	Denied
	IO
	Held
	Scriptlet
	Unchanged
	Interrupted
)

var names = map[Kind]string{
	Internal: "internal", Usage: "usage", NotFound: "not found", Conflict: "conflict",
	Unavailable: "unavailable", NoSpace: "no space", Untrusted: "untrusted", Corrupt: "corrupt",
	Busy: "busy", Denied: "denied", IO: "io", Held: "held", Scriptlet: "scriptlet failed",
	Unchanged: "unchanged", Interrupted: "interrupted",
}

// String returns the kind's name as it stands in the error JSON.
func (k Kind) String() string { return names[k] }

// ExitCode returns the process exit status of the kind.
func (k Kind) ExitCode() int {
	switch k {
	case Unchanged:
		return 77
	case Interrupted:
		return 130
	case 0:
		return int(Internal)
	}
	return int(k)
}

// Error is a failure with its kind and a hint. Its text is "WHAT: WHY".
type Error struct {
	Kind Kind
	Hint string // what the user can do next; one sentence, may be empty
	Err  error  // what failed and why; never nil
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// New returns an Error of the kind. The format may use %w.
func New(k Kind, hint, format string, args ...any) *Error {
	return &Error{Kind: k, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the outermost Error in err's chain, or the kind
// its cause implies: a full disk is NoSpace however deep it happened.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NoSpace
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Unavailable
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return IO
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return Denied
	}
	return Internal
}

// HintOf returns the hint nearest to the surface of err's chain, or a default
// for kinds that have an obvious next step.
func HintOf(err error) string {
	for e := err; e != nil; {
		var f *Error
		if !errors.As(e, &f) {
			break
		}
		if f.Hint != "" {
			return f.Hint
		}
		e = f.Err
	}
	switch KindOf(err) {
	case Internal:
		return "this is a bug in kedge; please report it with the output of the same command run with --log-level debug"
	case Denied:
		return "run as root, and check that the file system is not mounted read-only"
	case NoSpace:
		return "free some space (kedge cleanup removes old deployments) and run the command again; nothing was changed"
	case IO:
		return "check the disk (dmesg, smartctl); nothing that a boot entry points to was changed"
	}
	return ""
}
