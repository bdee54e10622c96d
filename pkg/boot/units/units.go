// Package units holds kedge's systemd units that belong to the boot: the one
// that finalises a staged deployment at shutdown, the one that keeps /boot from
// being unmounted before that, the one that reports a failure after it, and
// those that judge a boot and act on one that failed.
package units

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.service
var files embed.FS

// Names of the units.
const (
	Finalize     = "kedge-finalize-staged.service"
	Hold         = "kedge-finalize-staged-hold.service"
	BootComplete = "kedge-boot-complete.service"
	Health       = "kedge-health.service"
	HealthFailed = "kedge-health-failed.service"
	Bless        = "kedge-bless-boot.service"
)

// Names lists the units.
var Names = []string{Finalize, Hold, BootComplete, Health, HealthFailed, Bless}

// Enabled are the links that enable the units, beneath the directory of units,
// as their [Install] sections say it; each leads to the unit of its name.
var Enabled = []string{
	"multi-user.target.wants/" + Finalize,
	"multi-user.target.wants/" + BootComplete,
	"multi-user.target.wants/" + Health,
	"multi-user.target.wants/" + Bless,
	"boot-complete.target.requires/" + Health,
}

// DefaultProgram is where an image has kedge.
const DefaultProgram = "/usr/bin/kedge"

// Text returns a unit that runs the kedge at the absolute path program.
func Text(name, program string) (string, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("no unit %s: %w", name, err)
	}
	return strings.ReplaceAll(string(text), DefaultProgram, program), nil
}
