package main

import (
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdHistory(e *env) *cli.Command {
	return &cli.Command{
		Name:        "history",
		Usage:       "show every change of the deployments and every boot, newest first",
		Description: "Read from the sysroot's own record, which each change adds a line to, and each boot with\nits result.",
		UsageText:   "kedge history --json",
		Action:      withoutOperands(func(c *cli.Context) error { return show(c.Context, e, false, (*host.Host).History, historyText) }),
	}
}

func historyText(entries []v1.HistoryEntry) string {
	var rows [][]string
	for _, h := range entries {
		digest := strings.TrimPrefix(h.Digest, "sha256:")
		row := []string{h.Time.UTC().Format(time.DateTime), h.Verb, h.Result, h.Image, h.Version, digest[:min(12, len(digest))]}
		if h.Detail != "" {
			row = append(row, h.Detail)
		}
		rows = append(rows, row)
	}
	return columns(rows)
}
