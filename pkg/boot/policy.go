package boot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/kedge-os/kedge/pkg/boot/etcmerge"
	"github.com/kedge-os/kedge/pkg/fault"
)

// policyTimeout bounds a rebuild of the SELinux policy.
const policyTimeout = 4 * time.Minute

// refreshPolicy rebuilds a deployment's SELinux policy after local changes to
// it were merged: the local modules have to be linked with the new image's.
// Without local changes below /etc/selinux the policy is the one that the image
// was built with, and nothing has to run.
func (s *Sysroot) refreshPolicy(ctx context.Context, root *os.Root, changes []etcmerge.Change) error {
	local := false
	for _, c := range changes {
		local = local || strings.HasPrefix(c.Path, "selinux/")
	}
	if !local {
		return nil
	}
	if _, err := root.Stat("etc/selinux/config"); err != nil {
		return nil
	}
	_, sbin := root.Stat("usr/sbin/semodule")
	_, bin := root.Stat("usr/bin/semodule")
	if sbin != nil && bin != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	help, err := inDeployment(ctx, root, "semodule", "--help")
	if err != nil || !strings.Contains(help, "--refresh") {
		return err
	}
	start := s.opts.Clock()
	if _, err := inDeployment(ctx, root, "semodule", "-N", "--refresh"); err != nil {
		return err
	}
	s.log.Info("SELinux policy refreshed", "duration", s.opts.Clock().Sub(start))
	return nil
}

// inDeployment runs a program of a deployment in a sandbox of its own usr, etc
// and var, and returns what it prints.
func inDeployment(ctx context.Context, root *os.Root, argv ...string) (string, error) {
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
