#include "launcher/pull.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "images/checksum_file.h"
#include "images/error.h"
#include "images/sparse.h"
#include "launcher/failure.h"
#include "launcher/http.h"
#include "launcher/image_draft.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/progress.h"

namespace qvm {

using images::Answer;
using images::Checksum;
using images::HashKind;
using images::Verdict;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t longest_list = 4 * 1024 * 1024;  // of checksums
constexpr int most_failures = 4;                       // in a row, without a byte more
constexpr auto first_pause = 1s;                       // after one; twice as long after the next

/// What the contents have to be.
struct Expected {
    std::optional<Checksum> checksum{};
    std::string source{};     ///< who says so
    std::string signature{};  ///< what is known of that
};

class Pull {
  public:
    Pull(const ImageStore& store, const PullRequest& request)
        : store_(store), request_(request), entry_(request.entry) {}

    ImageRecord operator()() {
        note("from " + entry_.url);
        const auto expected = expect();
        if (auto record = find(expected)) return *record;
        // Whoever changes it on the way cannot change the checksum, too.
        downgrade_ =
            request_.checksum || (expected.checksum && expected.source.starts_with("https:"));
        bool waited = false;
        Download download{store_.downloads(), entry_.url, [&] {
                              waited = true;
                              note("another qvm pulls it: waiting for it");
                          }};
        if (waited)
            if (auto record = find(expected)) return *record;
        return add(download, expected);
    }

  private:
    void note(const std::string& text) const {
        if (!request_.quiet) say(fmt::format("qvm: {}: {}", entry_.name, text));
    }

    // --- what it has to be ----------------------------------------------------------------------

    [[nodiscard]] Expected expect() const {
        if (request_.checksum) return {request_.checksum, "--checksum"};
        if (entry_.checksums.empty()) {
            note("there is no checksum to compare it with");
            return {};
        }
        auto list = get_text(entry_.checksums);
        Expected expected{.source = entry_.checksums};
        expected.signature = check_signature(list);
        const auto file = images::file_name_of(entry_.url);
        try {
            expected.checksum = images::find_checksum(list, file);
            // "disk.qcow2.sha256" may know it by the name of its version.
            if (!expected.checksum && images::file_name_of(entry_.checksums).starts_with(file))
                expected.checksum = images::only_checksum(list);
        } catch (const images::Error& error) {
            throw Failure(fmt::format("{}: {}", entry_.checksums, error.what()));
        }
        if (!expected.checksum)
            throw Failure(fmt::format("{}: has no checksum of '{}'", entry_.checksums, file));
        return expected;
    }

    /// A file of a few KiB.
    [[nodiscard]] std::string get_text(const std::string& url) const {
        std::string text;
        const auto end = http_get(
            {.url = url},
            {.begin =
                 [](const Answer& answer) { return answer.status == 200 || answer.status == 0; },
             .take =
                 [&](std::string_view bytes) {
                     text += bytes;
                     if (text.size() > longest_list)
                         throw Failure(fmt::format("{}: is longer than {} MiB", url,
                                                   longest_list / 1024 / 1024));
                 }});
        if (!end.problem.empty()) throw Failure(fmt::format("{}: {}", url, end.problem));
        if (end.answer.status != 200 && end.answer.status != 0)
            throw Failure(fmt::format("{}: {}", url, images::describe_status(end.answer.status)));
        return text;
    }

    /// What is known of the list's signature. Of a list that is signed itself that part remains
    /// that was.
    [[nodiscard]] std::string check_signature(std::string& list) const {
        if (entry_.keyring.empty()) return "none";
        const auto not_checked = [&](const std::string& why) {
            note("the signature of its checksum was not checked: " + why);
            return "not checked: " + why;
        };
        if (!find_program("gpgv")) return not_checked("gpgv is not installed");
        if (!std::filesystem::exists(entry_.keyring))
            return not_checked(fmt::format(
                "there is no '{}'{}", entry_.keyring,
                entry_.keyring_package.empty() ? "" : ", of " + entry_.keyring_package));
        std::vector<std::string> words{"gpgv", "--keyring", entry_.keyring, "--output", "-"};
        const ImageDraft signature{store_.drafts()};
        const bool apart = !entry_.signature.empty();
        signature.write(apart ? get_text(entry_.signature) : list);
        words.push_back(signature.path().string());
        if (apart) words.emplace_back("-");
        const auto checked = run_tool(words, apart ? list : "");
        if (checked.status.code != 0 || checked.status.signal != 0)
            throw Failure(fmt::format("{}: its signature is not good: {}",
                                      apart ? entry_.signature : entry_.checksums,
                                      last_line(checked.err)));
        if (!apart) list = checked.out;
        return "good";
    }

    /// gpgv's last word is its verdict.
    static std::string last_line(std::string text) {
        while (text.ends_with('\n')) text.pop_back();
        text.erase(0, text.rfind('\n') + 1);
        constexpr std::string_view prefix = "gpgv: ";
        if (text.starts_with(prefix)) text.erase(0, prefix.size());
        return text;
    }

    /// The image, where it is there already; it has the name then. Without a checksum nobody knows.
    [[nodiscard]] std::optional<ImageRecord> find(const Expected& expected) const {
        if (!expected.checksum) return std::nullopt;
        auto record = store_.find_checked(to_string(*expected.checksum));
        if (!record || !store_.is_whole(record->digest)) return std::nullopt;
        describe(*record, expected);
        if (!store_.give_name(entry_.name, *record)) return std::nullopt;
        note("is here already");
        return record;
    }

    void describe(ImageRecord& record, const Expected& expected) const {
        record.architecture = entry_.architecture;
        record.source = entry_.url;
        if (expected.checksum) record.checksum = to_string(*expected.checksum);
        record.checksum_source = expected.source;
        record.signature = expected.signature;
    }

    // --- the transfer ---------------------------------------------------------------------------

    ImageRecord add(Download& download, const Expected& expected) {
        const bool goes_on = images::can_go_on(download.partial());
        auto digest = transfer(download, expected);
        // What was there may have been of no use: written by half when the power went, say.
        if (!digest && goes_on) {
            note("what was there of it was no good: once more from the beginning");
            digest = transfer(download, expected);
        }
        if (!digest) {
            download.discard();
            throw Failure(
                fmt::format("{}: its checksum is not what {} says", entry_.url, expected.source),
                request_.checksum ? "" : "it may be changing just now: try again later");
        }
        ProgressMeter meter{
            entry_.name, request_.quiet ? ProgressMeter::On::nothing : ProgressMeter::On::terminal};
        auto [draft, record] = image_of_download(store_, download, *digest, meter);
        describe(record, expected);
        store_.add(std::move(draft), entry_.name, record);
        return record;
    }

    /// Its SHA-256, once all is there; nothing where it is not what was expected, and then it is
    /// empty.
    std::optional<std::string> transfer(Download& download, const Expected& expected) {
        Hashes hashes{expected.checksum};
        hashes.begin(download);
        ProgressMeter meter{
            entry_.name, request_.quiet ? ProgressMeter::On::nothing : ProgressMeter::On::anything};
        std::uint64_t most = 0;
        for (int failures = 0; !get_more(download, hashes, meter, failures > 0);) {
            failures = download.partial().size > most ? 1 : failures + 1;
            most = std::max(most, download.partial().size);
            if (failures == most_failures)
                throw Failure(fmt::format("{}: {}", entry_.url, problem_));
            const auto pause = first_pause * (1 << (failures - 1));
            meter.clear();
            note(fmt::format("{}: again in {} s", problem_, pause / 1s));
            std::this_thread::sleep_for(pause);
        }
        meter.clear();
        auto digest = hashes.finish();
        if (!digest) download.begin({});
        return digest;
    }

    /// SHA-256, and what else the checksum is made by.
    class Hashes {
      public:
        explicit Hashes(const std::optional<Checksum>& expected) : expected_(expected) {}

        void begin(const Download& download) {
            own_ = images::Hash{HashKind::sha256};
            other_.reset();
            if (expected_ && expected_->kind != HashKind::sha256) other_.emplace(expected_->kind);
            if (!images::can_go_on(download.partial())) return;
            const auto nobody = [](std::uint64_t) {};
            images::hash_file(download.fd(), own_, nobody);
            if (other_) images::hash_file(download.fd(), *other_, nobody);
        }
        void update(std::string_view bytes) {
            own_.update(bytes.data(), bytes.size());
            if (other_) other_->update(bytes.data(), bytes.size());
        }
        std::optional<std::string> finish() {
            const auto own = own_.finish();
            if (!expected_ || *expected_ == (other_ ? other_->finish() : own)) return own.hex;
            return std::nullopt;
        }

      private:
        std::optional<Checksum> expected_;
        images::Hash own_{HashKind::sha256};
        std::optional<images::Hash> other_;
    };

    /// One request: whether all is there now. Else problem_ says why not. Throws Failure where
    /// another would not help.
    bool get_more(Download& download, Hashes& hashes, ProgressMeter& meter, bool again) {
        Verdict verdict;
        const auto begin = [&](const Answer& answer) {
            verdict = judge(download.partial(), answer);
            if (verdict.kind == Verdict::Kind::begin) {
                download.begin(validator_of(answer));
                hashes.begin(download);
            } else if (verdict.kind != Verdict::Kind::append) {
                return false;
            }
            const auto done = download.partial().size;
            if (verdict.size && *verdict.size > done)
                check_space(store_.downloads(), *verdict.size - done);
            meter.begin(done, verdict.size);
            return true;
        };
        const auto take = [&](std::string_view bytes) {
            download.append(bytes);
            hashes.update(bytes);
            meter.update(download.partial().size);
        };
        const auto end =
            http_get({.url = entry_.url, .partial = download.partial(), .downgrade = downgrade_},
                     {.begin = begin, .take = take});
        problem_ = end.problem;
        if (!end.connected && !again) throw Failure(fmt::format("{}: {}", entry_.url, problem_));
        if (!problem_.empty()) return false;
        switch (verdict.kind) {
            case Verdict::Kind::begin:
            case Verdict::Kind::append:
            case Verdict::Kind::whole:
                return true;
            case Verdict::Kind::restart:
                if (download.partial().size == 0) break;
                download.begin({});
                return get_more(download, hashes, meter, again);
            case Verdict::Kind::later:
                problem_ = images::describe_status(end.answer.status);
                return false;
            case Verdict::Kind::refused:
                break;
        }
        throw Failure(
            fmt::format("{}: {}", entry_.url, images::describe_status(end.answer.status)));
    }

    const ImageStore& store_;
    const PullRequest& request_;
    const images::CatalogueEntry& entry_;
    bool downgrade_ = false;  ///< an https URL may lead to one of http
    std::string problem_;
};

}  // namespace

ImageRecord pull(const ImageStore& store, const PullRequest& request) {
    try {
        return Pull{store, request}();
    } catch (const Failure& failure) {
        throw Failure(fmt::format("pull '{}': {}", request.entry.name, failure.what()),
                      failure.hint());
    }
}

}  // namespace qvm
