package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
)

func cmdFsck(e *env) *cli.Command {
	return &cli.Command{
		Name:  "fsck",
		Usage: "check every object and every deployment",
		Description: "Reads every object that a commit reaches and compares it with its checksum; checks that\n" +
			"each deployment has its root, its origin, its kernel and its boot entry. Changes nothing.",
		UsageText: "kedge fsck",
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return runFsck(c.Context, e)
		},
	}
}

func runFsck(ctx context.Context, e *env) error {
	h, err := e.open(ctx, false)
	if err != nil {
		return err
	}
	defer h.Close()
	r, err := h.Fsck(ctx)
	if err != nil {
		return err
	}
	if e.json {
		if err := e.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, p := range r.Problems {
			if err := e.printf("%s\n", oneLine(p)); err != nil {
				return err
			}
		}
		if err := e.printf("Checked %s and %s\n", count(r.Objects, "object"), count(r.Deployments, "deployment")); err != nil {
			return err
		}
	}
	if n := len(r.Problems); n > 0 {
		return fault.New(fault.Corrupt, "deploy the image again: kedge upgrade or kedge deploy DIGEST fetches what is damaged", "fsck: %s", count(n, "problem"))
	}
	return nil
}
