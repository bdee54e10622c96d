package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdFsck(e *env) *cli.Command {
	var opts host.FsckOptions
	return &cli.Command{
		Name:  "fsck",
		Usage: "check every object and every deployment",
		Description: "Reads every object of the store and compares it with its checksum or fs-verity digest;\n" +
			"checks that each deployment has its root, its origin, its kernel and its boot entry.\n\n" +
			"With --repair what is damaged is fetched again from the registry, from the very image that\n" +
			"the deployment was made from, and put in its place; a kernel that is missing in /boot comes\n" +
			"from the deployment. Without it nothing is changed.",
		UsageText: "kedge fsck --repair",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "fetch what is damaged again", Destination: &opts.Repair},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runFsck(c.Context, e, opts) }),
	}
}

func runFsck(ctx context.Context, e *env, opts host.FsckOptions) error {
	var r *v1.Check
	err := e.withHost(ctx, opts.Repair, func(h *host.Host) (err error) {
		r, err = h.Fsck(ctx, opts)
		return err
	})
	if err != nil {
		return err
	}
	n := len(r.Problems)
	if err := e.print(r, func() string { return checkText(r) }); err != nil || n == 0 {
		return err
	}
	if opts.Repair {
		return fault.New(fault.Corrupt, "move to another image: kedge upgrade, or kedge switch IMAGE", "fsck: %s left", count(n, "problem"))
	}
	if !r.Repairable {
		return fault.New(fault.Corrupt, "nothing of it can be fetched again; kedge upgrade, or kedge switch IMAGE, makes a new deployment", "fsck: %s", count(n, "problem"))
	}
	return fault.New(fault.Corrupt, "kedge fsck --repair puts back what can be", "fsck: %s", count(n, "problem"))
}

func checkText(r *v1.Check) string {
	var b strings.Builder
	for _, p := range r.Repaired {
		fmt.Fprintf(&b, "repaired: %s\n", oneLine(p))
	}
	for _, p := range r.Problems {
		fmt.Fprintln(&b, oneLine(p))
	}
	fmt.Fprintf(&b, "Checked %s and %s\n", count(r.Objects, "object"), count(r.Deployments, "deployment"))
	return b.String()
}
