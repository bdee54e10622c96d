package main

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
)

var judged = time.Date(2026, 1, 3, 3, 0, 0, 0, time.UTC)

func failedBoot() *v1.Health {
	const check = "/etc/kedge/health.d/20-web"
	return &v1.Health{
		State: v1.HealthFailed, Time: judged, Check: check, Reason: check + " failed (exit status 7)", Passed: 1, Failures: 3,
		Checks: []v1.HealthCheck{
			{Path: check, Required: true, Outcome: v1.CheckFailed, Status: "exit status 7", Output: "curl: (7)\x1b[2J refused\nno web\n"},
			{Path: "/etc/kedge/health.d/30-disk", Required: true, Outcome: v1.CheckNotRun},
		},
	}
}

func rolledBack() *v1.RollbackRecord {
	f := failedBoot()
	return &v1.RollbackRecord{
		Time: judged.Add(time.Minute), By: v1.ByLoader, From: "default/1.0", To: "default/0.0", FromVersion: "41.1",
		FromDigest: "sha256:" + strings.Repeat("1", 64), Reason: v1.HeldCheck, Check: f.Check, Detail: f.Reason,
	}
}

func TestHealthText(t *testing.T) {
	held := v1.Quarantined{
		Key: "0123456789ab", Origin: "ostree-unverified-registry:registry.example/os:stable", Version: "41.1",
		Time: judged, Reason: v1.HeldCheck, Check: "/etc/kedge/health.d/20-web",
	}
	for name, s := range map[string]*v1.HealthStatus{
		"unknown": {AutoRollback: v1.AutoRollback{State: v1.RollbackUnknown, Reason: "it depends on the boot loader"}},
		"good":    {Current: &v1.Health{State: v1.HealthGood, Time: judged, Passed: 3}, AutoRollback: v1.AutoRollback{State: v1.RollbackSupported}},
		"warned": {
			Current: &v1.Health{
				State: v1.HealthGood, Time: judged, Passed: 3, Warnings: []string{`/etc/kedge/health.toml: unknown key "tiemout"`},
				Checks: []v1.HealthCheck{
					{Path: "/etc/greenboot/check/wanted.d/ntp.sh", Outcome: v1.CheckTimedOut, Status: "after 1m0s"},
					{Path: "/etc/kedge/health.d/web", Required: true, Outcome: v1.CheckNotExecutable, Status: "mode -rw-r--r--"},
				},
			},
			AutoRollback: v1.AutoRollback{State: v1.RollbackSupported},
		},
		"failed": {
			Current: failedBoot(), LastRollback: rolledBack(), Quarantine: []v1.Quarantined{held},
			AutoRollback: v1.AutoRollback{State: v1.RollbackUnsupported, Reason: "GRUB 2.12 does not count boots"},
		},
	} {
		t.Run(name, func(t *testing.T) { golden(t, "health/"+name+".txt", healthStatusText(&env{}, s)) })
	}
}
