package main

import (
	"context"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdPkgSearch(e *env) *cli.Command {
	var cacheOnly bool
	return &cli.Command{
		Name: "search", Usage: "search the repositories for packages", ArgsUsage: "WORD…",
		Description: "Lists the packages whose name or summary has every WORD, from the repositories of the image and\n" +
			"those in /etc. What is found by its name comes first.",
		UsageText: "kedge pkg search htop",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "cache-only", Usage: "use what was read before; no network", Destination: &cacheOnly},
		},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return fault.New(fault.Usage, "kedge pkg search --help shows what it takes", "pkg search: WORD is missing")
			}
			return runPkgSearch(c.Context, e, c.Args().Slice(), cacheOnly)
		},
	}
}

func runPkgSearch(ctx context.Context, e *env, words []string, cacheOnly bool) error {
	read := func(h *host.Host, ctx context.Context) ([]v1.PackageFound, error) {
		return h.SearchPackages(ctx, words, cacheOnly)
	}
	return show(ctx, e, true, read, func(list []v1.PackageFound) string {
		var rows [][]string
		for _, p := range list {
			note := p.Summary
			if p.Installed != "" {
				note = "[" + p.Installed + "] " + note
			}
			rows = append(rows, []string{p.Name, p.Version, p.Arch, note})
		}
		return columns(rows)
	})
}
