// Package semodule links the SELinux policy of a new root anew where the machine
// has modules of its own, with the program of the root, in a sandbox.
package semodule

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

// timeout bounds a rebuild of the policy.
const timeout = 4 * time.Minute

// Needed reports whether a merge of /etc brought local changes to the policy,
// which have to be linked with the new image's. Without any the policy is the one
// that the image was built with, and nothing has to run.
func Needed(changes []etcmerge.Change) bool {
	return slices.ContainsFunc(changes, func(c etcmerge.Change) bool { return strings.HasPrefix(c.Path, "selinux/") })
}

// Refresh rebuilds the policy of the root whose usr, etc and var are in root.
// One without a policy, or without a program that can do it, is left as it is.
func Refresh(ctx context.Context, root *os.Root, log *slog.Logger) error {
	if _, err := root.Stat("etc/selinux/config"); err != nil {
		return nil
	}
	_, sbin := root.Stat("usr/sbin/semodule")
	_, bin := root.Stat("usr/bin/semodule")
	if sbin != nil && bin != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	help, err := run(ctx, root, "semodule", "--help")
	if err != nil || !strings.Contains(help, "--refresh") {
		return err
	}
	start := time.Now()
	if _, err := run(ctx, root, "semodule", "-N", "--refresh"); err != nil {
		return err
	}
	log.Info("SELinux policy refreshed", "duration", time.Since(start))
	return nil
}

// run runs a program of a root in a sandbox of its own usr, etc
// and var, and returns what it prints.
func run(ctx context.Context, root *os.Root, argv ...string) (string, error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return "", fault.New(fault.NotFound, "install bubblewrap", "run %s of the new root: bwrap is not installed", argv[0])
	}
	dir, err := root.Open(".")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	args := []string{
		// What /proc has beside processes is the machine's, and root may write it.
		"--dev", "/dev", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys",
		"--ro-bind-try", "/proc/sysrq-trigger", "/proc/sysrq-trigger", "--dir", "/run", "--dir", "/tmp", "--chdir", "/",
		"--die-with-parent", "--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-net", "--unshare-cgroup-try",
		"--bind", "usr", "/usr", "--bind", "etc", "/etc", "--bind", "var", "/var",
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		args = append(args, "--symlink", "usr/"+name, "/"+name)
	}
	cmd := exec.CommandContext(ctx, bwrap, append(append(args, "--"), argv...)...)
	// The child changes to it before it gives up the descriptors it was born with.
	cmd.Dir = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fault.New(fault.Conflict, "run it by hand in the booted system, or remove the local policy modules",
			"run %s of the new root: %w: %s", strings.Join(argv, " "), err, lastLine(errs.String()))
	}
	return out.String(), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
