package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

type statusOptions struct {
	Format string
	Booted bool
	// Packages compares databases, which is too slow to be done unasked.
	Packages bool
}

func (o *statusOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", Value: "text", Usage: "print as `FORMAT`: text, json or yaml", Destination: &o.Format},
		&cli.BoolFlag{Name: "booted", Usage: "show the booted deployment alone", Destination: &o.Booted},
		&cli.BoolFlag{Name: "packages", Usage: "show which packages change with the next boot too, which needs root", Destination: &o.Packages},
	}
}

func cmdStatus(e *env) *cli.Command {
	var opts statusOptions
	return &cli.Command{
		Name:  "status",
		Usage: "show what is booted, staged, next and kept",
		Description: "Shows each deployment with its image, digest, version and kernel arguments, and what\n" +
			"the next boot will take. Needs no root: on a booted host the last published status is\n" +
			"read from /run/kedge/status.json. The JSON is bootc's BootcHost; what kedge adds stands\n" +
			"in objects named kedge.",
		UsageText: "kedge status --json",
		Flags:     opts.AddFlags(),
		Action:    withoutOperands(func(c *cli.Context) error { return runStatus(c.Context, e, opts) }),
	}
}

func runStatus(ctx context.Context, e *env, opts statusOptions) error {
	if e.json {
		opts.Format = "json"
	}
	if opts.Format != "text" && opts.Format != "json" && opts.Format != "yaml" {
		return fault.New(fault.Usage, "use text, json or yaml", "--format %s: unknown format", opts.Format)
	}
	read := host.ReadStatus
	if opts.Packages {
		read = host.ReadStatusPackages
	}
	s, err := read(ctx, e.config())
	if err != nil {
		return err
	}
	if opts.Booted {
		if s.Status.Booted == nil {
			return fault.New(fault.NotFound, "leave --booted out to see what is deployed", "status: nothing of %s is booted", e.sysroot)
		}
		s.Status.Staged, s.Status.Rollback, s.Status.OtherDeployments = nil, nil, nil
	}
	switch opts.Format {
	case "json":
		return e.printJSON(s)
	case "yaml":
		return e.printYAML(s)
	}
	return e.write([]byte(statusText(e, s)))
}
