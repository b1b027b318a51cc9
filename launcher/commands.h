#pragma once

#include "launcher/options.h"
#include "launcher/timings.h"

/// The commands: each returns qvm's exit status, prints what was asked for on stdout and notes on
/// stderr, and throws std::exception for what fails (Failure with a hint, where there is one).
namespace qvm {

int run(const RunOptions& options, Timings& timings);
int create(const CreateOptions& options);
int start(const StartOptions& options, Timings& timings);
int remove(const RemoveOptions& options);
int verb(const VerbOptions& options);
int ps(const PsOptions& options);
int inspect(const InspectOptions& options);
int logs(const LogsOptions& options);
int console(const ConsoleOptions& options);
int exec(const ExecOptions& options);
int ssh(const SshOptions& options);
int ssh_config(const SshConfigOptions& options);
int copy(const CopyOptions& options);
int events(const EventsOptions& options);
int qmp_command(const QmpOptions& options);
int net_ls(const NetLsOptions& options);
int net_inspect(const NetInspectOptions& options);
int net_exec(const NetExecOptions& options);
int fork(const ForkOptions& options);
int snapshot_create(const SnapshotCreateOptions& options);
int snapshot_ls(const SnapshotLsOptions& options);
int snapshot_inspect(const SnapshotInspectOptions& options);
int snapshot_export(const SnapshotExportOptions& options);
int snapshot_import(const SnapshotImportOptions& options);
int snapshot_rm(const SnapshotRmOptions& options);
int image_demo(const ImageDemoOptions& options);
int image_pull(const ImagePullOptions& options);
int image_import(const ImageImportOptions& options);
int image_ls(const ImageLsOptions& options);
int image_inspect(const ImageInspectOptions& options);
int image_tag(const ImageTagOptions& options);
int image_export(const ImageExportOptions& options);
int image_rm(const ImageRmOptions& options);
int image_prune(const ImagePruneOptions& options);
int image_verify(const ImageVerifyOptions& options);
int image_build_debian(const ImageBuildDebianOptions& options);
int doctor(const DoctorOptions& options);
int completion(const CompletionOptions& options);

}  // namespace qvm
