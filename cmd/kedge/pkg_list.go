package main

import (
	"context"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdPkgList(e *env) *cli.Command {
	var requested, layered, all bool
	return &cli.Command{
		Name: "list", Usage: "list the packages that the next boot has on the image",
		Description: "Without a flag: what was asked for, and every package that is on the image for it.\n" +
			"--all runs the image's package manager, which needs root.",
		UsageText: "kedge pkg list --json",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "requested", Usage: "only what was asked for", Destination: &requested},
			&cli.BoolFlag{Name: "layered", Usage: "only what is on the image", Destination: &layered},
			&cli.BoolFlag{Name: "all", Usage: "every package of the root, the image's too", Destination: &all},
		},
		Action: withoutOperands(func(c *cli.Context) error { return runPkgList(c.Context, e, requested, layered, all) }),
	}
}

func runPkgList(ctx context.Context, e *env, requested, layered, all bool) error {
	read := func(h *host.Host, ctx context.Context) (*v1.PackageList, error) { return h.Packages(ctx, all) }
	return show(ctx, e, all && os.Geteuid() == 0, read, func(list *v1.PackageList) string {
		return packageListText(list, requested, layered, all)
	})
}

func packageListText(list *v1.PackageList, requested, layered, all bool) string {
	var rows [][]string
	row := func(cells ...string) { rows = append(rows, cells) }
	packages := list.Layered
	if all {
		packages = list.All
	}
	if !layered && !all {
		for _, name := range list.Requested {
			row(name, "requested", "")
		}
		for _, o := range list.Overrides {
			row(o.Name, o.Change, overrideText(o))
		}
		for _, name := range list.Inactive {
			if !slices.ContainsFunc(list.Overrides, func(o v1.PackageOverride) bool { return o.Name == name }) {
				row(name, "inactive", "the image has it")
			}
		}
		for _, p := range list.LeftOut {
			row(p.Name, "left out", p.Reason)
		}
	}
	if !requested {
		for _, p := range packages {
			row(p.Name, p.Version, p.Arch)
		}
	}
	return columns(rows)
}

func overrideText(o v1.PackageOverride) string {
	switch {
	case o.State == v1.OverrideInactive && o.Change == v1.OverrideRemoved:
		return "inactive: the image does not have it"
	case o.State == v1.OverrideInactive:
		return "inactive: the image does not have it, or has a newer version"
	case o.State == v1.OverrideLeftOut:
		return "left out"
	case o.To != "":
		return o.From + " → " + o.To
	}
	return o.From
}
