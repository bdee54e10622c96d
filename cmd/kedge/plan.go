package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdPlan(e *env) *cli.Command {
	var opts host.PlanOptions
	transport := &cli.StringFlag{Name: "transport", Usage: "read IMAGE with `TRANSPORT`: registry, oci, oci-archive, dir or containers-storage", Destination: &opts.Transport}
	tag := &cli.StringFlag{Name: "tag", Usage: "follow tag `T` of the same repository", Destination: &opts.Tag}
	inspect := &cli.BoolFlag{Name: "inspect", Usage: "read the whole image, keeping nothing, to say what it lacks and which packages change", Destination: &opts.Inspect}
	return &cli.Command{
		Name:  "plan",
		Usage: "say what switch or upgrade would do, and whether it can",
		Description: "Shows the bytes to fetch, the space needed on the root and /boot, and what the target\n" +
			"image lacks. Writes nothing. Exits with the code the operation itself would fail with.",
		UsageText: "kedge plan upgrade --json",
		Subcommands: []*cli.Command{
			{
				Name: "switch", Usage: "plan a switch", ArgsUsage: "IMAGE", UsageText: "kedge plan switch registry.example/os:stable",
				Flags: []cli.Flag{transport, inspect},
				Action: func(c *cli.Context) (err error) {
					if opts.Image, err = oneOperand(c, "IMAGE"); err != nil {
						return err
					}
					return runPlan(c.Context, e, opts)
				},
			},
			{
				Name: "upgrade", Usage: "plan an upgrade", UsageText: "kedge plan upgrade",
				Flags:  []cli.Flag{tag, inspect},
				Action: withoutOperands(func(c *cli.Context) error { return runPlan(c.Context, e, opts) }),
			},
		},
	}
}

func runPlan(ctx context.Context, e *env, opts host.PlanOptions) error {
	var p *v1.Plan
	plan := func(h *host.Host, ctx context.Context) (_ *v1.Plan, err error) {
		p, err = h.Plan(ctx, opts)
		return p, err
	}
	if err := show(ctx, e, false, plan, planText); err != nil || p.Possible {
		return err
	}
	kind := fault.Conflict
	for _, s := range p.Space {
		if !s.Enough {
			kind = fault.NoSpace
		}
	}
	return fault.New(kind, "solve what the plan lists and plan again; nothing was changed", "%s is not possible: %s", p.Operation, strings.Join(p.Problems, "; "))
}

func planText(p *v1.Plan) string {
	var b strings.Builder
	t := p.Target
	fmt.Fprintf(&b, "%s to %s %s\n", capital(p.Operation), oneLine(imageName(t.Image)), oneLine(deref(t.Version)))
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", name+":", oneLine(fmt.Sprintf(format, args...)))
	}
	line("digest", "%s", t.ImageDigest)
	if !p.Changed {
		line("change", "none: this is what the next boot takes already")
		return b.String()
	}
	line("fetch", "%s in %s (%s already here)", size(p.Fetch.Bytes), count(p.Fetch.Layers, "layer"), count(p.Fetch.LayersCached, "layer"))
	for _, s := range p.Space {
		verdict := "enough"
		if !s.Enough {
			verdict = "NOT ENOUGH"
		}
		line("space", "%s needs %s, has %s: %s", s.Path, size(s.Needed), size(s.Free), verdict)
	}
	for _, d := range p.Removes {
		line("removes", "%s", removedText(d))
	}
	effect := "at once"
	if p.Staged {
		effect = "at the next reboot"
	}
	line("effect", "%s", effect)
	b.WriteString(packageLines(p.PackageChanges, "  "))
	if p.Etc != nil {
		line("/etc", "%s", etcSummary(p.Etc))
		b.WriteString(etcConflictsText("    ", slices.DeleteFunc(slices.Clone(p.Etc), func(c v1.EtcChange) bool { return !c.Conflict })))
	}
	for _, m := range p.Missing {
		line("lacks", "%s: %s", m.What, m.Consequence)
	}
	for _, w := range p.Warnings {
		line("warning", "%s", w)
	}
	for _, w := range p.Problems {
		line("problem", "%s", w)
	}
	return b.String()
}
